"""What is shown of SmolLM2 and MiniLM is true of them."""

import pytest
import torch

from utils.core import plots
from utils.llm import tokens, weights
from utils.llm.architectures import inside, masks


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("beginning", masks.ENDINGS)
def test_endings_are_one_token_in_both_vocabularies(beginning):
    texts = [f"{beginning} {ending}" for ending in masks.ENDINGS[beginning]]
    for read, after in ((tokens.smollm2().encode, 0), (masks.minilm_tokens, 1)):  # [SEP]
        one, other = (list(read(text)) for text in texts)
        places = [n for n, pair in enumerate(zip(one, other, strict=True)) if len(set(pair)) > 1]
        assert places == [len(one) - 1 - after]


def test_the_last_word_changes_all_vectors_of_the_encoder_and_one_of_the_decoder():
    result = masks.run()
    encoder, decoder, unmasked = result.moved.values()
    assert encoder.min() > 0.01 and unmasked.min() > 0.01
    assert decoder[:-1].max() < 1e-4 < decoder[-1]
    assert masks.plot(result).axes


def test_the_lens_ends_with_what_the_model_says():
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    prompt = "The capital of France is"
    result = inside.lens(prompt)
    with torch.inference_mode():
        said = model(torch.tensor([vocabulary.encode(prompt)])).argmax(-1)[0]
    assert result.best[-1] == [vocabulary.decode([token]) for token in said.tolist()]
    assert result.answer == result.best[-1][-1] == " Paris"
    assert result.ranks[-1] == 1 and len(result.ranks) == 31
    assert "".join(result.tokens) == prompt
    assert plots.png(inside.plot_lens(result))


def test_a_group_of_heads_is_cut_out_of_all():
    model, vocabulary = weights.smollm2(), tokens.smollm2()
    result = inside.attend(layer=18, group=2)
    ids = vocabulary.encode("".join(result.tokens))
    whole = inside.attention_weights(model, inside.walk(model, ids)[17], 17)
    torch.testing.assert_close(result.weights, whole[3:6])
    assert result.first == 3 and len(result.tokens) == len(ids)
    assert plots.png(inside.plot_attended(result))


def test_similar_texts_are_similar_and_bad_input_is_refused():
    vectors = torch.stack([masks.minilm(text).mean(0) for text in ("a cat", "a kitten", "a lock")])
    cosines = torch.nn.functional.cosine_similarity(vectors[:1], vectors)
    assert cosines[1] > cosines[2]
    assert masks.alike(vectors, ["a", "b", "c"]).axes
    with pytest.raises(ValueError, match="prompt="):
        inside.lens("Something else")
    with pytest.raises(ValueError, match="layer=31"):
        inside.attend(layer=31)
