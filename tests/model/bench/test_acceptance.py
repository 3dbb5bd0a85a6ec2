import pytest

from quietserve.model.bench.acceptance import calibrate
from quietserve.model.config import SamplingParams
from quietserve.model.sampling import Draw, sample
from reference import Reference

DEPTH = 2


@pytest.mark.parametrize("wanted", [0.6, 0.9])
def test_the_wanted_share_of_drafts_is_accepted(wanted, setup_of, subject):
    """Counted the slow way, on texts that the calibration has not seen."""
    subject.weights.clear()
    assert calibrate(subject, DEPTH, wanted) > 0
    slow, agreed = Reference(subject.model, subject.lm), []
    for seed, text in enumerate(prompt for number in range(12) for prompt in setup_of(DEPTH).draw_prompts(number)):
        params = SamplingParams(seed=seed, thought_depth=DEPTH)
        mixed = slow.step(text, params).logits
        base = slow.step(text, SamplingParams(seed=seed)).logits
        for noise in range(10):
            draw = Draw(SamplingParams(seed=100 * seed + noise), text, len(text))
            agreed.append(sample(base[None], [draw]) == sample(mixed[None], [draw]))
    assert sum(agreed) / len(agreed) == pytest.approx(wanted, abs=0.08)


def test_a_weight_is_looked_for_once(subject, monkeypatch):
    subject.weights.clear()
    weight = calibrate(subject, DEPTH, 0.8)
    monkeypatch.setattr("quietserve.model.bench.acceptance._search", None)
    assert calibrate(subject, DEPTH, 0.8) == weight
