"""Lovasz losses: the published numbers, the definition in plain Python, and the limits."""

import numpy as np
import pytest
import torch

from auto_panoptic.systems.unified import lovasz, lovasz_hinge, lovasz_softmax


def by_definition(errors, positive, total=None):
    """sum_p m_p (J_p - J_{p-1}) of lists of errors and of whether each pixel is of the class."""
    total = sum(positive) if total is None else total
    loss, before, found, others = 0.0, 0.0, 0, 0
    for error, is_positive in sorted(zip(errors, positive, strict=True), key=lambda pair: -pair[0]):
        found, others = found + is_positive, others + (not is_positive)
        jaccard = 1 - (total - found) / (total + others)
        loss, before = loss + error * (jaccard - before), jaccard
    return loss


def hinge_by_definition(logits, labels):
    signs = (labels.double() * 2 - 1).tolist()
    errors = [max(0.0, 1 - x * sign) for x, sign in zip(logits.tolist(), signs, strict=True)]
    return by_definition(errors, [sign > 0 for sign in signs])


def softmax_by_definition(probabilities, labels, ignore=255):
    kept = [(row, y) for row, y in zip(probabilities.tolist(), labels.tolist(), strict=True) if y != ignore]
    losses = []
    for c in sorted({y for _, y in kept}):
        positive = [y == c for _, y in kept]
        losses.append(by_definition([abs((y == c) - row[c]) for row, y in kept], positive))
    return sum(losses) / len(losses) if losses else 0.0


def softmax_case(n, classes, seed=0, void=0.2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(n, classes, generator=generator, dtype=dtype).softmax(dim=1)
    labels = torch.randint(0, classes, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < void] = 255
    return probabilities, labels


# ------------------------------------------------------------------ hinge


def test_hinge_of_the_published_example():
    logits = torch.tensor([2, -1.5, 0.5, -0.5])
    assert lovasz_hinge(logits, torch.tensor([1, 0, 0, 1])).item() == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("positives", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 2, 57])
def test_hinge_is_the_definition(n, positives):
    generator = torch.Generator().manual_seed(n)
    for _ in range(20):
        logits = torch.randn(n, generator=generator, dtype=torch.float64) * 2
        labels = torch.rand(n, generator=generator) < positives
        expected = hinge_by_definition(logits, labels)
        for given in (labels, labels.long(), labels.float()):
            assert lovasz_hinge(logits, given).item() == pytest.approx(expected, abs=1e-12)


def test_hinge_of_several_segmentations_is_the_mean():
    """A logit of exactly 1 is no error, whatever the sign of its zero."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 40, generator=generator)
    labels = torch.rand(5, 40, generator=generator) < torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])[:, None]
    logits[:, ::4] = labels[:, ::4] * 2.0 - 1
    alone = [lovasz_hinge(x, y) for x, y in zip(logits, labels, strict=True)]
    torch.testing.assert_close(lovasz_hinge(logits, labels), torch.stack(alone).mean())
    none = torch.zeros(0, 40, requires_grad=True)
    lovasz_hinge(none, torch.zeros(0, 40)).backward()
    assert none.grad.shape == (0, 40)


def test_hinge_of_confident_logits_is_the_iou():
    """With errors of 0 and 2 it is twice 1 - IoU, and 0 where all is right with a margin of 1."""
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    logits = torch.tensor([1.0, 1, -1, 1, 1, -1, -1])
    assert lovasz_hinge(logits, labels).item() == pytest.approx(2 * (1 - 2 / 5), abs=1e-6)
    assert lovasz_hinge(labels * 2.0 - 1, labels).item() == 0


def test_hinge_gradients():
    logits, labels = torch.randn(40, dtype=torch.float64, requires_grad=True), torch.rand(40) < 0.4
    assert torch.autograd.gradcheck(lambda x: lovasz_hinge(x, labels), logits)
    none = torch.zeros(40, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: lovasz_hinge(x, none), logits)


@pytest.mark.parametrize("n", [0, 6])
def test_hinge_without_errors_is_zero_with_a_graph(n):
    logits = torch.full((n,), 3.0, requires_grad=True)
    loss = lovasz_hinge(logits, torch.ones(n))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(n))


# ------------------------------------------------------------------ softmax

ROWS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1], [0.2, 0.6, 0.2]], dtype=torch.float64)


def test_softmax_of_the_published_example():
    labels = torch.tensor([0, 1, 0, 1])
    assert lovasz_softmax(ROWS, labels).item() == pytest.approx((0.45 + 11 / 30) / 2, abs=1e-12)
    assert lovasz_softmax(ROWS, labels).item() == pytest.approx(0.408333, abs=5e-7)
    for c, value in ((0, 0.45), (1, 0.366667)):
        positive = (labels == c).tolist()
        errors = [abs(y - row[c]) for y, row in zip(positive, ROWS.tolist(), strict=True)]
        assert by_definition(errors, positive) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("n, classes", [(1, 1), (3, 5), (60, 4), (200, 9)])
def test_softmax_is_the_definition(n, classes):
    for seed in range(10):
        probabilities, labels = softmax_case(n, classes, seed)
        expected = softmax_by_definition(probabilities, labels)
        assert lovasz_softmax(probabilities, labels).item() == pytest.approx(expected, abs=1e-12)
        other = torch.where(labels == 255, -1, labels)
        assert lovasz_softmax(probabilities, other, ignore=-1).item() == pytest.approx(expected, abs=1e-12)


def test_softmax_of_hard_predictions_is_one_minus_the_iou():
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(0, 4, (2, 300), generator=generator)
    labels[labels == 2] = 3  # an absent class does not count
    hard = torch.nn.functional.one_hot(predicted, 5).double()
    ious = []
    for c in (0, 1, 3):
        a, b = labels == c, predicted == c
        ious.append((a & b).sum().item() / (a | b).sum().item())
    assert lovasz_softmax(hard, labels).item() == pytest.approx(1 - np.mean(ious), abs=1e-12)


def test_softmax_gradients():
    probabilities, labels = softmax_case(30, 4)
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x, labels), probabilities.requires_grad_())


@pytest.mark.parametrize("n", [0, 5])
def test_softmax_of_void_is_zero_with_a_graph(n):
    probabilities = torch.full((n, 3), 1 / 3, requires_grad=True)
    loss = lovasz_softmax(probabilities, torch.full((n,), 255))
    loss.backward()
    assert loss.item() == 0 and torch.equal(probabilities.grad, torch.zeros(n, 3))


# ------------------------------------------------------------------ both


def test_ties_do_not_matter():
    """Errors of few values in any order, and by the definition in both extreme orders of the tied ones."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 4, (200, 3), generator=generator).double() + 1
    probabilities, labels = steps / 4, torch.randint(0, 3, (200,), generator=generator)
    logits, positive = steps[:, 0] - 2, labels == 0
    softmax, hinge = lovasz_softmax(probabilities, labels).item(), lovasz_hinge(logits, positive).item()
    for _ in range(5):
        order = torch.randperm(200, generator=generator)
        assert lovasz_softmax(probabilities[order], labels[order]).item() == pytest.approx(softmax, abs=1e-12)
        assert lovasz_hinge(logits[order], positive[order]).item() == pytest.approx(hinge, abs=1e-12)
    for descending in (True, False):
        order = labels.argsort(descending=descending, stable=True)
        expected = softmax_by_definition(probabilities[order], labels[order])
        assert softmax == pytest.approx(expected, abs=1e-12)


def test_many_pixels_are_sorted_the_same(monkeypatch):
    probabilities, labels = softmax_case(500, 3, dtype=torch.float32)
    loss, hinge = lovasz_softmax(probabilities, labels), lovasz_hinge(probabilities[:, 0], labels == 0)
    monkeypatch.setattr(lovasz, "_DIGITS", 1)
    monkeypatch.setattr(lovasz, "_ERRORS", 1)
    assert torch.equal(lovasz_softmax(probabilities, labels), loss)
    assert torch.equal(lovasz_hinge(probabilities[:, 0], labels == 0), hinge)


def test_millions_of_pixels_keep_their_digits():
    """Each increment is about 1e-6: differences of float32 numbers near 1 would be off by percents."""
    n = 1 << 21
    logits = torch.linspace(-1, 1, n).double()
    labels = torch.arange(n) % 3 == 0
    single, double = logits.float().requires_grad_(), logits.requires_grad_()
    for x in (single, double):
        lovasz_hinge(x, labels).backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-5, atol=0)


def test_sixteen_bits_count_as_thirty_two():
    probabilities, labels = softmax_case(400, 3, dtype=torch.bfloat16)
    loss = lovasz_softmax(probabilities, labels)
    assert loss.dtype == torch.float32 and torch.equal(loss, lovasz_softmax(probabilities.float(), labels))
    hinge = lovasz_hinge(probabilities[:, 0].half(), labels == 0)
    assert hinge.dtype == torch.float32
    assert torch.equal(hinge, lovasz_hinge(probabilities[:, 0].half().float(), labels == 0))


def test_nan_stays_visible():
    logits = torch.tensor([0.0, float("nan"), 2.0])
    assert lovasz_hinge(logits, torch.tensor([1, 0, 0])).isnan()
    assert lovasz_softmax(logits[:, None].expand(3, 2), torch.tensor([1, 0, 0])).isnan()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: lovasz_hinge(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)), "logits and labels"),
        (lambda: lovasz_hinge(torch.zeros(3), torch.zeros(2)), "logits and labels"),
        (lambda: lovasz_softmax(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64)), "probabilities"),
        (
            lambda: lovasz_softmax(torch.zeros(3, 2), torch.tensor([0, 1, 2])),
            "expected labels 0 to 1 or 255, got",
        ),
        (
            lambda: lovasz_softmax(torch.zeros(3, 2), torch.tensor([0, -1, 1])),
            "expected labels 0 to 1 or 255, got",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
