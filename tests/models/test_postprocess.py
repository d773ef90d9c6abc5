import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from models.detection.box_coder import BoxCoder
from models.detection.postprocessing.nms import HardNMS, SoftNMS
from models.detection.postprocessing.postprocess import Postprocessor


def candidates(batch, count, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 80 * torch.rand(batch, count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 5 + 40 * torch.rand(batch, count, 2, generator=generator)], -1)
    scores = torch.rand(batch, count, generator=generator).sort(descending=True).values
    return boxes, scores, torch.randint(num_classes, (batch, count), generator=generator)


@pytest.mark.parametrize(
    ("count", "classes", "block", "limit"), [(300, 3, 64, 20), (300, 2, 64, 300), (40, 1, 512, 50)]
)
def test_hard_nms_is_torchvisions(count, classes, block, limit):
    boxes, scores, labels = candidates(4, count, classes)
    scores[0, 17:] = 0  # few candidates
    scores[1] = 0  # none
    kept, values = HardNMS(block=block)(boxes, scores, labels, limit)
    assert kept.shape == values.shape == (4, limit)
    for i in range(4):
        n = int((scores[i] > 0).sum())
        expected = batched_nms(boxes[i, :n], scores[i, :n], labels[i, :n], 0.5)[:limit].tolist()
        padding = limit - len(expected)
        assert kept[i].tolist() == expected + [-1] * padding
        assert values[i].tolist() == scores[i][expected].tolist() + [0] * padding


def test_hard_nms_resolves_a_chain():
    # Each box suppresses the next: 0, 2 and 4 stay.
    x = torch.arange(5.0) * 2
    boxes = torch.stack([x, torch.zeros(5), x + 10, torch.full((5,), 10.0)], 1)[None]
    scores = torch.linspace(0.9, 0.5, 5)[None]
    kept, _ = HardNMS()(boxes, scores, torch.zeros(1, 5, dtype=torch.int64), 5)
    assert kept.tolist() == [[0, 2, 4, -1, -1]]


def soft_nms_one_class(boxes, scores, sigma, threshold):
    """The paper's figure 2, one image and class."""
    boxes, scores, left, result = boxes.double(), scores.double().clone(), list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: scores[i].item())
        if scores[best] <= threshold:
            break
        result.append((best, scores[best].item()))
        left.remove(best)
        for i in left:
            scores[i] *= torch.exp(-(box_iou(boxes[best : best + 1], boxes[i : i + 1])[0, 0] ** 2) / sigma)
    return result


def test_soft_nms_is_the_papers_algorithm():
    boxes, scores, _ = candidates(2, 40, 1)
    labels = torch.zeros(2, 40, dtype=torch.int64)
    kept, values = SoftNMS(score_threshold=0.2)(boxes, scores, labels, 40)
    for i in range(2):
        expected = soft_nms_one_class(boxes[i], scores[i], 0.5, 0.2)
        n = len(expected)
        assert 5 < n < 40
        assert kept[i].tolist() == [index for index, _ in expected] + [-1] * (40 - n)
        torch.testing.assert_close(values[i, :n].double(), torch.tensor([s for _, s in expected]).double())
        assert (values[i, n:] == 0).all()


def test_soft_nms_leaves_other_classes_alone():
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    scores, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 0]])
    kept, values = SoftNMS()(boxes, scores, labels, 4)
    assert kept.tolist() == [[0, 1, 2, -1]]
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.8, 0.7 * torch.exp(torch.tensor(-2.0)).item(), 0]]))


def brute_force(logits, codes, anchors, size, candidates, limit):
    """One image: sort every pair."""
    scores = torch.cat(logits)[:, :].flatten()
    order = scores.argsort(descending=True)[:candidates]
    num_classes = logits[0].shape[1]
    boxes = BoxCoder().decode(torch.cat(codes)[order // num_classes], anchors[order // num_classes])
    boxes = boxes.clamp(min=0).minimum(torch.tensor([size[1], size[0], size[1], size[0]]).float())
    scores, labels = scores[order].sigmoid(), order % num_classes
    keep = batched_nms(boxes, scores, labels, 0.5)[:limit]
    return boxes[keep], scores[keep], labels[keep]


@pytest.mark.parametrize("top", [50, 300, 5000])
def test_postprocessing_equals_brute_force(top):
    generator = torch.Generator().manual_seed(1)
    sizes = [120, 30, 9]
    logits = [3 * torch.randn(2, n, 6, generator=generator) - 3 for n in sizes]
    codes = [0.3 * torch.randn(2, n, 4, generator=generator) for n in sizes]
    corner = 90 * torch.rand(sum(sizes), 2, generator=generator)
    anchors = torch.cat([corner, corner + 40], 1)
    image_size = torch.tensor([[100, 80], [60, 130]])
    found = Postprocessor(candidates=top)(logits, codes, anchors, BoxCoder(), image_size)
    assert found["boxes"].shape == (2, 100, 4)
    for i in range(2):
        arguments = [x[i] for x in logits], [x[i] for x in codes], anchors, image_size[i].tolist(), top, 100
        boxes, scores, labels = brute_force(*arguments)
        n = len(boxes)
        torch.testing.assert_close(found["boxes"][i, :n], boxes)
        torch.testing.assert_close(found["scores"][i, :n], scores)
        assert torch.equal(found["labels"][i, :n], labels)
        assert (found["labels"][i, n:] == -1).all()
        assert (found["scores"][i, n:] == 0).all()
        assert (found["boxes"][i, n:] == 0).all()


def test_score_threshold_drops_candidates():
    logits = [torch.tensor([[[0.0, -9.0], [2.0, -9.0]]])]
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    post = Postprocessor(score_threshold=0.6, max_detections=3)
    found = post(logits, [torch.zeros(1, 2, 4)], anchors, BoxCoder(), torch.tensor([[100, 100]]))
    assert found["labels"].tolist() == [[0, -1, -1]]
    assert found["boxes"][0, 0].tolist() == [50, 50, 60, 60]
