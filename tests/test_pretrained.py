"""The output layer of pretrained networks: headless networks, two heads, and encoders of several kinds."""

import pytest
import torch
from torch import nn

from avalanche_supermask import SparseFineTuning
from avalanche_supermask.model.heads import output_pattern
from avalanche_supermask.pretrained import classifier

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 16,
}


def texts() -> torch.Tensor:
    ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return torch.stack([ids * mask, mask], dim=1)


def timm_vit(name="vit_tiny_patch16_224", **arguments):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, img_size=32, embed_dim=24, depth=1, num_heads=2, **arguments)


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 0}])
def test_a_timm_network_gets_an_output_layer_even_if_it_has_none(arguments):
    net = timm_vit(**arguments).eval()
    new = classifier(net, 3)
    pooled = net.forward_head(net.forward_features(IMAGES), pre_logits=True)
    assert torch.equal(new(IMAGES), new.head(pooled))
    assert new.head.out_features == 3
    assert output_pattern(new) == r"head\..*"


def test_both_output_layers_of_a_distilled_network_are_new_and_belong_to_the_task(capsys):
    net = classifier(timm_vit("deit_tiny_distilled_patch16_224"), 3)
    assert net.eval()(IMAGES).shape == (2, 3)
    model = SparseFineTuning(net, density=0.1, evaluator=None).model
    capsys.readouterr()
    assert {"head.weight", "head_dist.weight"} <= {n for n, _ in model.net.named_parameters() if n in model.fresh}


def test_the_output_layer_of_a_timm_network_has_the_type_of_its_weights():
    assert {p.dtype for p in classifier(timm_vit(num_classes=0).double(), 3).parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("net", "norm", "width"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1", 8),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6)), "2", 6),
    ],
)
def test_a_network_that_returns_features_is_refused(net, norm, width):
    with pytest.raises(ValueError, match=rf"the norm '{norm}' follows .* nn.Linear\({width}, 3\)") as error:
        classifier(net, 3)
    assert "\n" not in str(error.value)


def test_norms_that_are_only_declared_after_the_output_layer_do_not_matter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.norm = nn.Linear(4, 6), nn.Linear(6, 10), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.fc2(self.norm(self.fc1(x)))

    assert classifier(Net(), 3)(torch.randn(2, 4)).shape == (2, 3)


def test_the_width_of_an_image_encoder_is_that_of_its_features():
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTConfig(image_size=32)  # its hidden_sizes are not the width of its features
    encoder = transformers.MobileViTModel(config).eval()
    new = classifier(encoder, 3).eval()
    assert torch.equal(new(IMAGES), new.fc(encoder(pixel_values=IMAGES).pooler_output))
    assert encoder.training is False
    assert classifier(encoder.train(), 3).encoder.training is True


def test_a_map_of_features_is_averaged_over_its_positions():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "patch_sizes": [7, 3], "strides": [4, 2], "sr_ratios": [2, 1]}
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, **sizes
    )
    encoder = transformers.SegformerModel(config).eval()
    new = classifier(encoder, 3).eval()
    assert torch.equal(new(IMAGES), new.fc(encoder(pixel_values=IMAGES).last_hidden_state.mean(dim=(2, 3))))


def test_an_encoder_decoder_gives_its_encoder():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    net = transformers.T5ForSequenceClassification(config)
    new = classifier(net, 3)
    assert new(texts()).shape == (2, 3)
    assert not any("decoder" in name for name, _ in new.named_parameters())


def test_models_of_several_encoders_and_for_sound_are_refused():
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config={**text, "vocab_size": 50}, vision_config=VISION))
    with pytest.raises(ValueError, match=r"several encoders \(text, vision\).*classifier\(model.vision_model, 3\)"):
        classifier(clip, 3)
    assert classifier(clip.vision_model, 3)(IMAGES).shape == (2, 3)
    assert classifier(clip.text_model, 3)(texts()).shape == (2, 3)
    sound = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**text))
    with pytest.raises(ValueError, match=r"takes 'input_values'; expected a model for texts .* or images"):
        classifier(sound, 3)
