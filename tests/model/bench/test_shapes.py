import torch

from quietserve.model.bench.cell import Cell, Setup
from quietserve.model.bench.shapes import SHAPES, build, load


def test_shapes_have_about_the_parameters_of_their_names():
    for name, size in SHAPES.items():
        if not name.endswith("M"):
            continue
        hidden, inner, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
        kv = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
        total = 2 * size["vocab_size"] * hidden + layers * (2 * hidden**2 + 2 * hidden * kv + 3 * hidden * inner)
        assert 0.95 < total / (float(name[:-1]) * 1e6) < 1.05


def test_a_seed_is_a_model(sizes):
    one, same, other = (build("tiny", sizes, torch.float32, seed) for seed in (0, 0, 1))
    assert torch.equal(one.lm.lm_head.weight, same.lm.lm_head.weight)
    assert not torch.equal(one.lm.lm_head.weight, other.lm.lm_head.weight)
    assert one.model.backbone.lm.lm_head.weight is one.lm.lm_head.weight  # one copy of the weights for all systems


def test_bfloat16(sizes):
    subject = build("tiny", sizes, torch.bfloat16)
    assert {parameter.dtype for parameter in subject.model.parameters()} == {torch.bfloat16}


def test_every_id_has_a_text(subject):
    assert subject.tokens.decode([5, 299]) == "w5 w299"


def test_the_bundled_checkpoint():
    subject = load("bundled", "float32")
    setup = Setup(subject, Cell(subject.name, 2, 20, 0), 4, 1.0, 1)
    prompts = setup.draw_prompts(0)
    assert not subject.forced
    assert [len(prompt) for prompt in prompts] == [20, 20]
    assert not {*subject.tokens.markers.values()} & {*prompts[0], *prompts[1]}


def test_rounds_have_their_own_prompts(setup_of):
    setup = setup_of(0)
    assert setup.draw_prompts(1) == setup.draw_prompts(1)
    assert setup.draw_prompts(1) != setup.draw_prompts(2)
