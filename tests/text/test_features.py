import copy
import pickle

import pytest
import torch

from avalanche_supermask.text import TokenFeatures, tokenise
from tests.text.conftest import make_encoder

TEXTS = ["dog", "cat the of", "red and blue to the sun", "one two"]


@pytest.fixture
def x(tokenizer):
    return tokenise(TEXTS, tokenizer)


def calls(features):
    """Return a list that gets one entry at each later call of the encoder."""
    seen = []
    features.encoder.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_features_are_those_of_the_encoder(encoder, x):
    features = TokenFeatures(encoder)(x)
    encoder.eval()
    with torch.no_grad():
        expected = encoder(input_ids=x[:, 0], attention_mask=x[:, 1]).last_hidden_state * x[:, 1, :, None]
    torch.testing.assert_close(features, expected)


def test_a_text_is_encoded_once_and_alone(encoder, x):
    features = TokenFeatures(encoder)
    seen = calls(features)
    first = features(x)
    assert len(seen) == len(TEXTS)
    assert torch.equal(features(x.flip(0)).flip(0), first)
    longest = int(x[0, 1].sum())
    assert torch.equal(features(x[:1]), first[:1, :longest]), "bit for bit, whatever the batch"
    assert len(seen) == len(TEXTS)


def test_known_features_are_exactly_those_computed_anew(encoder, x):
    known = TokenFeatures(encoder)
    known(x)
    little_kept = TokenFeatures(encoder, max_bytes=200)
    with pytest.warns(UserWarning, match="encoded anew"):
        anew = little_kept(x)
    assert torch.equal(known(x), anew)
    assert len(known) == 4
    assert len(little_kept) == 2


def test_autocast_gradients_and_mode_do_not_matter(encoder, x):
    plain = TokenFeatures(encoder)(x)
    features = TokenFeatures(encoder.train())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        assert torch.equal(features(x), plain)
    assert encoder.training, "the caller's encoder stays as it was"
    assert all(p.requires_grad for p in encoder.parameters())


def test_a_file_keeps_features(encoder, x, tmp_path):
    path = tmp_path / "features.safetensors"
    made = TokenFeatures(encoder)
    found = made(x)
    made.save(path)
    again = TokenFeatures(encoder, file=path)
    seen = calls(again)
    assert torch.equal(again(x), found)
    assert not seen
    assert all(again.knows(row) for row in x)
    assert not TokenFeatures(encoder).knows(x[0])


def test_a_file_of_another_encoder_is_refused(encoder, x, tmp_path):
    path = tmp_path / "features.safetensors"
    made = TokenFeatures(encoder)
    made(x)
    made.save(path)
    with pytest.raises(ValueError, match="another encoder"):
        TokenFeatures(make_encoder(seed=1), file=path)
    TokenFeatures(encoder, file=tmp_path / "none.safetensors")


def test_copies_share_and_pickles_answer_the_same(encoder, x):
    features = TokenFeatures(encoder)
    found = features(x)
    assert copy.deepcopy(features) is features
    again = pickle.loads(pickle.dumps(features))
    assert torch.equal(again(x), found)


def test_an_encoder_that_came_by_name_is_not_pickled(encoder, x, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    features = TokenFeatures(tmp_path / "encoder")
    found = features(x)
    data = pickle.dumps(features)
    assert len(data) < 1000
    assert torch.equal(pickle.loads(data)(x), found)


def test_a_batch_of_empty_texts(encoder):
    assert TokenFeatures(encoder)(torch.zeros(2, 2, 5, dtype=torch.long)).shape == (2, 1, 16)
