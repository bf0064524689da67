"""Train an SE-ResNet with spatial attention and a small ViT on digits, and draw what their three kinds of attention give to an image.

python examples/three_attentions.py FOLDER

The pictures of docs/handbook/attention.md: a 0 and a 7 that were held out. About 35 s of one CPU core.
"""

import sys
import tempfile
from pathlib import Path

import torch

import kawara
from kawara.analysis.attention import attention_maps
from kawara.data.sources import load_data
from kawara.layers import taps
from kawara.plots.attention_kinds import attention_kinds, channel_weights, weight_maps
from kawara.plots.style import has_japanese_font, to_png


def trained(model, epochs, options):
    with tempfile.TemporaryDirectory() as folder:
        settings = {"model.options": options}
        run = kawara.train("digits", model=model, epochs=epochs, image_size=16, seed=0, out=f"{folder}/run", settings=settings, quiet=True)
        print(f"{model} {options}: {run.metrics['top1']:.1%} of {run.metrics['num_images']} held-out digits right")
        return kawara.load(run.model_path)


cnn = trained("seresnet_femto", 16, {"depths": [1, 1, 1], "spatial_kernel": 7})
vit = trained("vit_femto_conv_2", 12, {"depth": 2})

preprocessing = vit.card.preprocessing
held_out = load_data("digits", preprocessing, val_fraction=vit.card.recipe["data"]["val_fraction"]).splits["val"]
two = [preprocessing.place(held_out.store[list(held_out.labels).index(digit)]) for digit in (0, 7)]
image = preprocessing.normalise(torch.stack(two))  # (2, 1, 16, 16)

channels, places = [], []
with torch.no_grad(), taps.read(cnn.model, "layer*.0.se:input", "layer*.0.spatial:input") as inputs:
    cnn.model(image)
    for name in cnn.model.block_names:
        block = cnn.model.get_submodule(name)
        channels.append(block.se.gates(inputs[f"{name}.se:input"].mean(dim=(2, 3))).numpy())  # (2, C)
        places.append(block.spatial.gates(inputs[f"{name}.spatial:input"])[:, 0].numpy())  # (2, h, w)
        print(f"{name}: the weight of a channel differs by {abs(channels[-1][0] - channels[-1][1]).mean():.2f} between 0 and 7 in the mean")

queries = [(0, 0), (4, 1)]  # the blank corner, and the stroke on the left
rows = attention_maps(vit.model, image[:1], queries=queries).patches[0]  # (blocks, heads, queries, 8, 8)
shares = 100 * rows.mean(axis=1).swapaxes(0, 1)  # % of the mean over the heads
pictures = torch.stack(two)[:, 0].numpy()
for language in ("en", "ja") if has_japanese_font() else ("en",):
    figures = {
        "kinds": attention_kinds(language=language),
        "channels": channel_weights(channels, ("0", "7"), language=language),
        "places": weight_maps(pictures, list(zip(*places)), "{:.2f} – {:.2f}", highest=1.0, language=language),
        "queries": weight_maps(pictures[[0, 0]], shares, "{:.1f} – {:.1f} %", queries=queries, language=language),
    }
    for name, figure in figures.items():
        Path(sys.argv[1], f"attention-{name}-{language}.png").write_bytes(to_png(figure, dpi=120))
