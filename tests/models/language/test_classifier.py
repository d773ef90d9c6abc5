"""Classifiers on language models: which vector, what is trained, the loss; and the bag of words."""

import math

import pytest
import torch

from errors import UserError
from models.language import BERT, GPT, BagOfWords, ELMo, SequenceClassifier
from models.language.classifier import classified
from models.language.weights import load_weights

VOCAB = 30


def bert(**changes):
    return BERT(**{"vocab_size": VOCAB, "layers": 1, "heads": 2, "hidden_size": 8, "context_length": 16} | changes)


def batch(lengths=(5, 3), labels=(1, 0)):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": mask,
        "labels": torch.tensor(labels),
        "index": torch.arange(len(lengths)),
    }


def classifier(encoder, **options):
    torch.manual_seed(0)
    network = SequenceClassifier(encoder=encoder, num_classes=options.pop("num_classes", 2), **options)
    torch.nn.init.normal_(network.head.weight)
    return network.eval()


def test_each_pooling_by_hand():
    encoder = bert().eval()
    data = batch()
    hidden = encoder.encode(data)
    expected = {
        "first": encoder.pooler(hidden[:, 0]),
        "last": torch.stack([hidden[0, 4], hidden[1, 2]]),
        "mean": torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)]),
        "max": torch.stack([hidden[0].amax(0), hidden[1, :3].amax(0)]),
    }
    for pooling, vector in expected.items():
        network = classifier(encoder, pooling=pooling)
        torch.testing.assert_close(network(data)["logits"], network.head(vector))


def test_last_token_of_a_causal_model_ignores_padding():
    network = classifier(GPT(vocab_size=VOCAB, layers=1, heads=2, hidden_size=8, context_length=16), pooling="last")
    data = batch()
    alone = {key: value[1:, :3] if value.dim() > 1 else value[1:] for key, value in data.items()}
    torch.testing.assert_close(network(data)["logits"][1:], network(alone)["logits"])


def test_elmo_as_it_is_with_a_mixture_of_layers():
    encoder = ELMo(filters=[(1, 4), (2, 4)], highways=1, cells=6, projection=4)
    network = classifier(encoder, pooling="mean", mix_layers=True, train_encoder=False).train()
    assert not encoder.training and network.mix.training
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"mix.weights", "mix.gamma", "head.weight", "head.bias"}
    characters = torch.randint(1, 262, (2, 4, 50))
    characters[1, 3:] = 0
    data = {"character_ids": characters, "attention_mask": characters[..., 0] > 0, "labels": torch.tensor([1, 0])}
    layers = encoder.layers(data)
    network.eval()
    mixed = layers.mean(0)  # as it begins
    vectors = torch.stack([mixed[0].mean(0), mixed[1, :3].mean(0)])
    torch.testing.assert_close(network(data)["logits"], network.head(vectors))
    network.loss_terms(network(data), data)["cross_entropy"].value().backward()
    assert network.mix.weights.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_heads_of_the_encoder_are_kept_but_not_trained():
    encoder = bert()
    network = classifier(encoder).train()
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert "encoder.pooler.dense.weight" in trained and "encoder.tokens.weight" in trained
    assert not [name for name in trained if "masked_head" in name or "next_sentence" in name]
    network.loss_terms(network(batch()), batch())["cross_entropy"].value().backward()
    missing = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing  # or several processes would wait for them


def test_a_pooler_on_an_encoder_that_is_not_trained():
    network = classifier(bert(), train_encoder=False).train()
    network.loss_terms(network(batch()), batch())["cross_entropy"].value().backward()
    graded = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert graded == {"head.weight", "head.bias", "encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}


def test_losses_by_hand():
    network = classifier(bert())
    outputs = {"logits": torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])}
    loss = network.loss_terms(outputs, batch())["cross_entropy"]
    assert loss.numerator.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert loss.value().item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    network = classifier(bert(), num_classes=1)
    loss = network.loss_terms({"logits": torch.tensor([[2.0], [0.5]])}, {"labels": torch.tensor([1.5, 0.0])})
    assert loss["squared_error"].value().item() == pytest.approx((0.25 + 0.25) / 2)


def test_it_starts_from_a_pretrained_encoder(tmp_path):
    pretrained = bert()
    torch.save(pretrained.state_dict(), tmp_path / "bert.pt")
    network = classifier(bert())
    head = network.head.weight.clone()
    load_weights(network, tmp_path / "bert.pt")
    for name, value in pretrained.state_dict().items():
        assert torch.equal(network.state_dict()[f"encoder.{name}"], value)
    assert torch.equal(network.head.weight, head)


def test_bag_of_words_by_hand():
    network = BagOfWords(num_classes=2, vocab_size=VOCAB)
    torch.nn.init.normal_(network.weight)
    data = {
        "input_ids": torch.tensor([[3, 5, 3, 7], [5, 5, 0, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool(),
    }
    w = network.weight
    expected = torch.stack([(w[3] + w[5] + w[VOCAB + 3] + w[VOCAB + 7]) / 2, w[5]])
    torch.testing.assert_close(network(data)["logits"], expected)
    # Order, repetition and padding do not matter.
    other = {
        "input_ids": torch.tensor([[5, 3, 5, 7, 3, 9]]),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]).bool(),
    }
    torch.testing.assert_close(network(other)["logits"], expected[:1])


def test_what_scores_say():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    found = classified(logits, ["no", "yes"])
    assert [result["label"] for result in found] == ["yes", "no"]
    assert found[0]["probabilities"] == pytest.approx({"no": 0.25, "yes": 0.75})
    assert classified(torch.tensor([[2.5]]), []) == [{"value": 2.5}]


def test_encoders_that_do_not_fit():
    with pytest.raises(UserError, match="which this GPT lacks"):
        SequenceClassifier(encoder=GPT(vocab_size=VOCAB, layers=1, heads=1, hidden_size=4), num_classes=2)
    with pytest.raises(UserError, match="build BERT with next_sentence true"):
        SequenceClassifier(encoder=bert(next_sentence=False), num_classes=2)
    with pytest.raises(UserError, match="mix_layers needs an encoder that gives all its layers"):
        SequenceClassifier(encoder=bert(), num_classes=2, mix_layers=True)
