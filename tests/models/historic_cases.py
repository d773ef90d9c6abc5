"""A batch with proposals, for the detectors that are given them."""

import torch


def batch(seed=0, size=96, classes=3):
    """Two pictures with bright squares, one of each class's colour; the objects are among the proposals.

    Returns:
        images (2, 3, H, W) uint8, image_size, targets, proposals (boxes, valid).
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    image_size = torch.tensor([[size, size], [size, size - 16]])
    boxes, labels = torch.zeros(2, 8, 4), torch.full((2, 8), -1)
    for i in range(2):
        for j in range(2):
            side = int(torch.randint(28, 40, (), generator=generator))
            x = int(torch.randint(0, 8, (), generator=generator)) + 40 * j
            y = int(torch.randint(0, 40, (), generator=generator))
            label = int(torch.randint(classes, (), generator=generator))
            side = min(side, int(image_size[i, 1]) - x)
            images[i, label, y : y + side, x : x + side] = 250
            boxes[i, j] = torch.tensor([x, y, x + side, y + side])
            labels[i, j] = label
    images[1, :, :, size - 16 :] = 0
    jitter = torch.randint(-6, 7, (2, 24, 4), generator=generator).float()
    near = (boxes[:, :2].repeat(1, 12, 1) + jitter).clamp(0, size - 16)
    corner = torch.rand(2, 16, 2, generator=generator) * 50
    far = torch.cat([corner, corner + 10 + torch.rand(2, 16, 2, generator=generator) * 20], 2)
    proposals = torch.cat([near, far], 1)
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, 36:] = False
    targets = {
        "boxes": boxes,
        "labels": labels,
        "iscrowd": torch.zeros(2, 8, dtype=torch.bool),
        "area": torch.zeros(2, 8),
    }
    return images, image_size, targets, (proposals.where(valid[..., None], 0), valid)


def run(network, images, image_size, proposals):
    """The outputs of a network, with the proposals."""
    outputs = network(network.preprocess(images, image_size))
    outputs["proposals"] = proposals
    return outputs


def overfit(network, steps=60, lr=2e-3, seed=0):
    """The loss before and after training on one batch."""
    torch.manual_seed(seed)
    images, image_size, targets, proposals = batch()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr)
    values = []
    for _ in range(steps):
        terms = network.train().loss_terms(run(network, images, image_size, proposals), targets, image_size)
        loss = sum(term.value() for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def found(network):
    """How many objects of the batch are the best detections: same class, IoU of .5."""
    from torchvision.ops import box_iou

    images, image_size, targets, proposals = batch()
    with torch.no_grad():
        detections = network.eval().detect(run(network, images, image_size, proposals), image_size)
    hits = 0
    for i in range(2):
        for box, label in zip(targets["boxes"][i, :2], targets["labels"][i, :2], strict=True):
            good = (detections["labels"][i] == label) & (detections["scores"][i] > 0.5)
            hits += bool((box_iou(box[None], detections["boxes"][i][good]) >= 0.5).any())
    return hits
