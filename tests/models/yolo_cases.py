"""What the tests of the three versions of YOLO share."""

import torch

from models.detection.boxes import pairwise_iou


def make_targets(*images, places=4):
    """Targets of a batch: per image a list of (x1, y1, x2, y2, label), or of (..., "crowd")."""
    boxes = torch.zeros(len(images), places, 4)
    labels = torch.full((len(images), places), -1)
    crowd = torch.zeros(len(images), places, dtype=torch.bool)
    for i, objects in enumerate(images):
        for j, (*box, label) in enumerate(objects):
            crowd[i, j] = label == "crowd"
            boxes[i, j] = torch.tensor(box)
            labels[i, j] = 0 if crowd[i, j] else label
    sides = boxes[..., 2:] - boxes[..., :2]
    return {"boxes": boxes, "labels": labels, "iscrowd": crowd, "area": sides.prod(-1)}


def random_targets(images, size, num_classes, *, objects=5, seed=0):
    """`objects` boxes per image, then a crowd and padding."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(images):
        corners = torch.rand(objects + 1, 2, generator=generator) * size * 0.7
        sides = (0.05 + 0.25 * torch.rand(objects + 1, 2, generator=generator)) * size
        labels = [*torch.randint(num_classes, (objects,), generator=generator).tolist(), "crowd"]
        boxes = torch.cat([corners, corners + sides], 1).tolist()
        batch.append([(*box, label) for box, label in zip(boxes, labels, strict=True)])
    return make_targets(*batch, places=objects + 3)


def real_objects(targets, image):
    """Boxes (n, 4) and labels of an image, without crowds and padding."""
    real = (targets["labels"][image] >= 0) & ~targets["iscrowd"][image]
    return targets["boxes"][image][real], targets["labels"][image][real].tolist()


def iou(first, second):
    """Overlap of two boxes, a number."""
    return pairwise_iou(first.view(1, 4), second.view(1, 4)).item()


def two_pictures(size):
    """Two pictures (uint8) with three coloured boxes on noise, and their targets."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(60, 100, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    scale = size / 128
    objects = [[(8, 16, 56, 60, 0), (70, 64, 124, 112, 1)], [(20, 50, 80, 120, 2)]]
    objects = [[(*(side * scale for side in box), label) for *box, label in image] for image in objects]
    for image, image_objects in zip(images, objects, strict=True):
        for x1, y1, x2, y2, label in image_objects:
            image[label, int(y1) : int(y2), int(x1) : int(x2)] = 250
    return images, make_targets(*objects)


def overfit(network, size, *, steps, lr, copies=1):
    """Train on two pictures: (the first loss, the last, the detections afterwards, the targets).

    With more copies in a batch, the variances of training, which are biased, come closer to those of evaluation.
    """
    images, targets = two_pictures(size)
    images, targets = images.repeat(copies, 1, 1, 1), {k: torch.cat([v] * copies) for k, v in targets.items()}
    sizes = torch.tensor([[size, size]] * len(images))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    losses = []
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 10, (steps - step) / (steps / 2))
        outputs = network(network.preprocess(images, sizes))
        loss = sum(term.value() for term in network.loss_terms(outputs, targets, sizes).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network.eval()
    with torch.no_grad():
        detections = network.detect(network(network.preprocess(images, sizes)), sizes)
    return losses[0], losses[-1], detections, targets


def assert_finds_all(detections, targets, *, min_iou=0.6):
    """The best detections of every image are its objects."""
    for image in range(len(detections["boxes"])):
        boxes, labels = real_objects(targets, image)
        found = detections["boxes"][image][: len(boxes)]
        assert sorted(detections["labels"][image][: len(boxes)].tolist()) == sorted(labels)
        overlaps = pairwise_iou(boxes, found)
        assert overlaps.amax(1).min() > min_iou, overlaps
