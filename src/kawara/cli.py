"""The verbs: `kawara train DATA`, `check`, `evaluate`, `predict`, `inspect`, `compare`, `ablate`, `convert`, `export`, `bench`, …"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

STARTED_AT = time.monotonic()

from kawara.errors import KawaraError, ProcessLostError, UserError  # noqa: E402  the clock of a run starts before torch is imported

EPILOG = """\
start here:
  kawara demo                                   train on real digits in a minute or two, then look at runs/demo/report.html
  kawara train photos/                          a folder with one sub-folder for each class
  kawara train photos/ --minutes 15             the best model that 15 minutes allow
  kawara evaluate runs/photos-1/model.safetensors photos/
  kawara predict runs/photos-1/model.safetensors new/*.jpg
  kawara inspect runs/photos-1/model.safetensors photos/          what it looks at, on one page
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser that offers near names for a mistyped option or verb."""

    known: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        known = [*self.known, *(option for action in self._actions for option in action.option_strings)]
        words = [word.strip("',:").split("=")[0] for word in message.split()]
        near = [match for word in words if word not in known for match in difflib.get_close_matches(word, known, n=1, cutoff=0.6)]
        remedy = f"\n  try:     {' or '.join(dict.fromkeys(near))}" if near else f"\n  try:     {self.prog} --help"
        self.exit(2, f"{self.prog}: {message}{remedy}\n")


def build_parser() -> _Parser:
    """Return the parser of all verbs."""
    parser = _Parser(
        prog="kawara",
        description="The Vision Transformer workbench: a folder of images in, a trained ViT out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def verb(name: str, summary: str, epilog: str = "") -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=summary.replace("%", "%%"),  # argparse formats this text, but not the description
            description=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.add_argument("--json", action="store_true", help="print one JSON object on stdout; everything else goes to stderr")
        return added

    train = verb("train", "train a Vision Transformer on a folder of images (or zip, idx, npz, CSV, hf:name)", TRAIN_EPILOG)
    train.add_argument("data", metavar="DATA", help="folder, zip, idx folder, npz, CSV/JSONL manifest, `digits`, or hf:name")
    train.add_argument("--model", metavar="NAME", help="see `kawara models`; chosen from image size and count if not given")
    train.add_argument(
        "--pretrained",
        metavar="CHECKPOINT",
        help="begin with this model: a file or folder of kawara, timm, Hugging Face, torchvision or Google, or hub:owner/name",
    )
    train.add_argument("--freeze", metavar="PART", help="none, backbone (train only the head: seconds), or N: the first N blocks")
    train.add_argument(
        "--teacher", metavar="CHECKPOINT", help="a finished model of the same classes, ViT or CNN, to learn from besides the labels"
    )
    train.add_argument(
        "--distill",
        choices=["soft", "hard", "token"],
        help="how: its decision (hard, the default), its probabilities (soft), or through a distillation token (token, ViT only)",
    )
    train.add_argument("--recipe", metavar="NAME", help="see `kawara recipes`")
    _add_length(train)
    train.add_argument("--image-size", type=int, metavar="PX", help="side of the square that the model sees")
    train.add_argument("--out", metavar="DIR", help="run folder (default: runs/<data>-<number>)")
    train.add_argument("--seed", type=int, metavar="N", help="same seed, same model (default 0)")
    train.add_argument("--resume", action="store_true", help="go on with the settings of an interrupted run in --out (default: the latest)")
    train.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    train.add_argument(
        "--devices", type=int, metavar="N", help="train with N processes, each on a GPU of its own; the result stays the same"
    )
    train.add_argument("--config", metavar="FILE", help="YAML or JSON with any part of the configuration, such as a run's config.yaml")
    train.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting; repeatable")
    gate = train.add_mutually_exclusive_group()
    gate.add_argument("--strict", action="store_true", help="stop if `kawara check` finds an error or a warning in DATA")
    gate.add_argument("--no-check", action="store_true", help="do not look for copies and other things worth a warning in DATA")
    train.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")

    check = verb("check", "what is wrong with a data set, file by file: faults, copies across splits, classes", CHECK_EPILOG)
    check.add_argument("data", metavar="DATA", help="as for train")
    check.add_argument(
        "--model", metavar="MODEL", help="a model.safetensors or a checkpoint of others: finds labels that are probably wrong"
    )
    check.add_argument("--device", metavar="NAME")
    check.add_argument("--out", metavar="DIR", help="a new folder for a page with pictures, check.json and quarantine.csv (default: none)")
    check.add_argument("--strict", action="store_true", help="exit code 2 if there is an error or a warning")

    evaluate = verb("evaluate", "measure a model on labelled images, with 95 % intervals", EVALUATE_EPILOG)
    evaluate.add_argument("model", metavar="MODEL", help="a model.safetensors, or an exported .onnx or .xml")
    evaluate.add_argument("data", metavar="DATA", help="as for train; its test part is used, else val, else all of it")
    evaluate.add_argument("--split", choices=["train", "val", "test", "all"], help="which part of DATA")
    evaluate.add_argument(
        "--protocol",
        default="classify",
        choices=["classify", "fewshot", "knn"],
        help="classify: the answers of the head (default); fewshot, knn: the backbone alone, on the classes of DATA",
    )
    evaluate.add_argument("--shots", type=_numbers, metavar="N,N,…", help="for fewshot: images of each class (default 1,5,10,25)")
    evaluate.add_argument(
        "--neighbours", type=int, metavar="K", help="for knn: how many vote (default 20; 10, 100 and 200 are shown beside it)"
    )
    evaluate.add_argument("--seed", type=int, metavar="N", help="for fewshot: of the draws of the images (default 0)")
    evaluate.add_argument("--merge", type=int, metavar="R", help="merge R tokens a block of a ViT first: what would it cost?")
    evaluate.add_argument("--device", metavar="NAME")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N")

    predict = verb("predict", "name what is in images", PREDICT_EPILOG)
    predict.add_argument("model", metavar="MODEL", help="a model.safetensors, or an exported .onnx or .xml")
    predict.add_argument("images", nargs="+", metavar="FILE|FOLDER|GLOB|-", help="images; - reads paths from stdin, one a line")
    predict.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to list (default 5)")
    predict.add_argument("--csv", action="store_true", help="print CSV on stdout")
    predict.add_argument("--out", metavar="DIR", help="write Parquet files into DIR; the same command goes on where it was interrupted")
    predict.add_argument("--engine", default="local", choices=["local", "ray"], help="with --out: here (default), or on all that Ray has")
    predict.add_argument("--device", metavar="NAME")
    predict.add_argument("--batch-size", type=int, default=64, metavar="N")

    compare = verb("compare", "would a CNN of the same size have been better? Or: which of two models is better?", COMPARE_EPILOG)
    compare.add_argument("paths", nargs="+", metavar="[MODEL MODEL] DATA", help="DATA to train both sides on; or two model files and DATA")
    compare.add_argument("--model", metavar="NAME", help="the first side (default: chosen as by train)")
    compare.add_argument(
        "--twin", metavar="NAME", help="the second side: a model's name, or auto (default): a CNN as large as a ViT, or a ViT as a CNN"
    )
    compare.add_argument("--match", choices=["params", "macs", "latency"], help="what as large means (default params)")
    _add_training(compare)
    compare.add_argument("--split", choices=["train", "val", "test"], help="which part of DATA to measure on (default test, else val)")
    compare.add_argument("--threads", type=int, default=1, metavar="N", help="to measure times with (default 1)")

    ablate = verb("ablate", "what is each ingredient of the recipe worth? Leaves one out at a time", ABLATE_EPILOG)
    ablate.add_argument("data", metavar="DATA", help="as for train")
    ablate.add_argument("--model", metavar="NAME", help="as for train")
    ablate.add_argument("--without", type=_names, metavar="A,B,…", help="only these ingredients (default: all that the recipe has)")
    _add_training(ablate)
    ablate.add_argument("--split", choices=["train", "val", "test"], help="which part of DATA to measure on (default test, else val)")

    inspect = verb("inspect", "look into a model: attention, explanations, layers, on one page", INSPECT_EPILOG)
    inspect.add_argument("model", metavar="MODEL", help="a model.safetensors, or a checkpoint of others; ViT or CNN")
    inspect.add_argument(
        "images", nargs="+", metavar="FILE|FOLDER|GLOB|DATA", help="images; or one data set as for train: its test part, else val, else all"
    )
    inspect.add_argument("--with", dest="other", metavar="OTHER", help="a second model beside it, on the same images: a CNN beside a ViT")
    inspect.add_argument("--out", metavar="DIR", help="a new folder (default: runs/inspect-<model>-<number>)")
    inspect.add_argument(
        "--language", choices=["en", "ja"], help="of the PNG files, and the one that the page opens in (default: the reader's)"
    )
    inspect.add_argument("--photos", type=int, default=16, metavar="N", help="images with maps (default 16); statistics use up to 256")
    inspect.add_argument("--blocks", type=_numbers, metavar="N,N,…", help="whose attention is drawn, 1 is the first (default: four depths)")
    inspect.add_argument("--heads", type=_numbers, metavar="N,N,…", help="which heads are drawn (default: the first six)")
    inspect.add_argument("--device", metavar="NAME")

    convert = verb("convert", "read a checkpoint of timm, transformers, torchvision or google-research, or write one", CONVERT_EPILOG)
    convert.add_argument("source", metavar="SRC", help="file or folder of weights, a kawara model, or hub:owner/name[@revision][/file]")
    convert.add_argument("destination", metavar="DST", help="a new .safetensors file, or a new folder")
    convert.add_argument(
        "--to", choices=["kawara", "timm", "huggingface"], help="what to write (default: kawara for .safetensors, huggingface for a folder)"
    )
    convert.add_argument("--heads", type=int, metavar="N", help="number of attention heads, for files that do not say it")
    convert.add_argument(
        "--normalise", choices=["imagenet", "half"], help="colours that the model was trained with: mean and std of ImageNet, or 0.5"
    )

    export = verb(
        "export", "write a model with its preprocessing for ONNX Runtime, OpenVINO, torch.export or browsers, and certify it", EXPORT_EPILOG
    )
    export.add_argument("model", metavar="MODEL", help="a model.safetensors, a checkpoint of others, or hub:owner/name")
    export.add_argument(
        "--to",
        default="onnx",
        choices=["onnx", "openvino", "torch", "web"],
        help="onnx (default): one file; openvino: .xml and .bin; torch: .pt2; web: a folder with a page that runs the model in a browser",
    )
    export.add_argument("--out", metavar="FILE|DIR", help="where to (default: beside MODEL)")
    export.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "fp16", "int8"],
        help="fp16: weights in half precision, half the size; int8: layers in whole numbers, a third of the size, faster; needs --data",
    )
    export.add_argument("--data", metavar="DATA", help="labelled images, as for evaluate, on which accuracy is compared with torch")
    export.add_argument("--max-drop", type=float, default=0.5, metavar="N", help="points of top-1 accuracy that may be lost (default 0.5)")
    export.add_argument(
        "--calibrate",
        metavar="DATA",
        help="for int8: images to measure ranges on (default: the train part of DATA, else a share set aside)",
    )
    export.add_argument(
        "--fallback",
        choices=["mixed", "none"],
        help="for int8 that loses too much: mixed (default) leaves the worst layers in float; none refuses it",
    )
    export.add_argument(
        "--weight-bits", type=int, choices=[7, 8], help="for int8: 7 for CPUs of x86 without VNNI (default: what this CPU needs)"
    )
    export.add_argument(
        "--runtime",
        metavar="ADDRESS|DIR",
        help="web: where the page loads onnxruntime-web from (default: cdn.jsdelivr.net), or its folder, which is copied (works offline)",
    )
    export.add_argument(
        "--merge",
        metavar="R|auto",
        help="merge R tokens a block of a ViT, which is faster; auto: as many as --max-drop allows",
    )

    bench = verb("bench", "how fast are models on this machine, in each run time? And against CNNs of the same size?", BENCH_EPILOG)
    bench.add_argument(
        "models", nargs="+", metavar="MODEL", help="a model file, a name of `kawara models`, or an exported .onnx or .xml; several compare"
    )
    bench.add_argument("--threads", type=_numbers, default=(1,), metavar="N,N,…", help="numbers of threads (default 1)")
    bench.add_argument("--device-profile", type=_profile, dest="threads", metavar="threads=N,N,…", help="the same, as `threads=1,2`")
    bench.add_argument("--batch", type=_numbers, default=(1,), metavar="N,N,…", help="batch sizes (default 1)")
    bench.add_argument("--image-size", type=_numbers, default=(), metavar="PX,PX,…", help="sides of the images (default: each model's own)")
    bench.add_argument(
        "--runtime", type=_names, default=(), metavar="A,B,…", help="of torch, compile, onnx, openvino (default: all that are here)"
    )
    bench.add_argument("--twin", action="store_true", help="beside each ViT the CNN of the same size")
    bench.add_argument("--match", choices=["params", "macs", "latency"], default="params", help="what the same size means (default params)")
    bench.add_argument("--data", metavar="DATA", help="labelled images, for accuracy against latency (default: what the model files say)")
    bench.add_argument("--seconds", type=float, default=2.0, metavar="S", help="how long each case is repeated (default 2)")
    bench.add_argument("--out", metavar="DIR", help="folder for bench.json and report.html (default: runs/bench-<number>)")

    models = verb("models", "list the models, or show one")
    models.add_argument("name", nargs="?", metavar="NAME")
    recipes = verb("recipes", "list the recipes, or show one with its settings")
    recipes.add_argument("name", nargs="?", metavar="NAME")
    demo = verb("demo", "train on 1,797 real handwritten digits, evaluate, predict, and make a page to look at")
    demo.add_argument("--out", default="runs/demo", metavar="DIR")
    verb("doctor", "show what kawara found on this machine")
    options = (option for added in verbs.choices.values() for action in added._actions for option in action.option_strings)
    parser.known = (*verbs.choices, *dict.fromkeys(options))
    return parser


def _add_length(parser: argparse.ArgumentParser) -> None:
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, metavar="N", help="how often to go through the training images")
    length.add_argument("--steps", type=int, metavar="N", help="how many optimiser steps to take")
    length.add_argument("--minutes", type=float, metavar="N", help="finish in N minutes, evaluation and writing included")


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of verbs that train several runs alike."""
    parser.add_argument("--recipe", metavar="NAME", help="see `kawara recipes`")
    _add_length(parser)
    parser.add_argument("--seeds", type=int, metavar="N", help="how many runs of each (default 3; with 1 little can be known)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="side of the square that the models see")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the runs and the result; the same command goes on where it was interrupted"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting of every run; repeatable")


TRAIN_EPILOG = """\
examples:
  kawara train photos/                                   model and recipe chosen from your images; says why
  kawara train photos/ --minutes 15                      annealed and evaluated on time
  kawara train photos/ --pretrained deit_tiny.safetensors            fine-tune: the usual way to the best model on your own photos
  kawara train photos/ --pretrained hub:facebook/dinov2-small --freeze backbone    only a new head, in seconds
  kawara train photos/ --recipe deit --model vit_small_16 --image-size 224 --epochs 300
  kawara train photos/ --set optimizer.lr=0.001 --set augment.flip=0
  kawara train photos/ --devices 4                       four processes, a GPU each: the same result sooner
  torchrun --nnodes 2 --nproc-per-node 4 -m kawara train photos/         several machines
  kawara train photos/ --resume                          after an interruption; with --out the same command goes on by itself

A folder may hold train/, val/ and test/, or just one sub-folder a class: then kawara holds out images by their content,
so that the parts never move.
"""

CHECK_EPILOG = """\
examples:
  kawara check photos/                            what was found, and what is done about it
  kawara check photos/ --out photos-checked       the same as a page: open photos-checked/report.html
  kawara check photos/ --strict && kawara train photos/
  kawara check photos/ --model deit_tiny.safetensors      also labels that are probably wrong, by the model's features

errors     the file is quarantined: not used, not replaced, not counted
warnings   it is used, but the result may mean less than it seems: copies in train and test, two labels for one picture
notes      it is used: turned upright, converted, first picture taken

The same is looked for before every training.
"""

EVALUATE_EPILOG = """\
examples:
  kawara evaluate model.safetensors photos/                       right answers, calibration, confusion, each class
  kawara evaluate backbone.safetensors photos/ --protocol knn     do photos of a class lie together?
  kawara evaluate backbone.safetensors photos/ --protocol fewshot --shots 1,5,10

fewshot and knn look at the features before the head, so MODEL needs no head and DATA may have any classes. Nothing is trained:
  knn       the nearest images of the train part vote, each with the weight exp(cosine similarity / 0.07)
  fewshot   a linear classifier, by ridge regression in closed form, on a few train images of each class; 3 draws
The test part is measured, else val; images without parts are split by content, as for training.
"""

COMPARE_EPILOG = """\
examples:
  kawara compare photos/ --model vit_nano_conv_8 --epochs 30 --out cnn-or-vit     against a CNN of the same size, 3 seeds each
  kawara compare photos/ --model vit_micro_conv_8 --match macs --minutes 10       6 runs of 10 minutes
  kawara compare photos/ --model vit_nano_conv_8 --twin resnet20 --seeds 5
  kawara compare old.safetensors new.safetensors photos/                          two models that are there already

Both sides see the same images, split, augmentation and length. The verdict compares them image by image; it says "no difference"
where there is none, and when images or seeds are too few to know. DIR/report.html shows accuracy against latency, cost over the
image size, and how both bear noise, blur, shift and missing parts.
"""

ABLATE_EPILOG = """\
examples:
  kawara ablate photos/ --recipe deit --model vit_tiny_16 --epochs 50 --out what-helps
  kawara ablate photos/ --model vit_nano_conv_8 --epochs 30 --without label_smoothing,muon

Number of runs: (ingredients + 1) × seeds.
"""

PREDICT_EPILOG = """\
examples:
  kawara predict model.safetensors photo.jpg
  kawara predict model.safetensors photos/ --csv > answers.csv
  find . -name '*.jpg' | kawara predict model.safetensors - --json
  kawara predict model.safetensors archive/ --engine ray --out labels      millions of images, on all cores, GPUs or a cluster
"""

INSPECT_EPILOG = """\
examples:
  kawara inspect runs/photos-1/model.safetensors photos/              on images held out of training
  kawara inspect deit_tiny.safetensors new/*.jpg                      any images, without labels
  kawara inspect vit.safetensors photos/ --with resnet.safetensors    a CNN beside it
  kawara inspect vit.safetensors photo.jpg --blocks 1,6,12 --heads 1,2

Writes report.html, one page that needs nothing else, with every figure as PNG and its numbers as JSON and npz beside it.
"""

CONVERT_EPILOG = """\
examples:
  kawara convert hub:google/vit-base-patch16-224 vit.safetensors     from the Hugging Face hub, ready for kawara
  kawara convert vit_b_16.pth vit.safetensors                        torchvision, timm, DeiT, DINO, MAE, DINOv2 files
  kawara convert ViT-B_16.npz vit.safetensors                        google-research files
  kawara convert odd.pth odd.safetensors --heads 5                   where a file does not say how many heads it has
  kawara convert runs/photos-1/model.safetensors for-transformers/   leave: a folder that transformers loads
  kawara convert runs/photos-1/model.safetensors for-timm.safetensors --to timm

A table says what became of every tensor. Nothing is executed from files, and nothing is written unless all of it can be.
"""

EXPORT_EPILOG = """\
examples:
  kawara export runs/photos-1/model.safetensors --data photos/                   model.onnx, compared with torch on the test images
  kawara export runs/photos-1/model.safetensors --to openvino --precision fp16   model.xml and model.bin, half the size
  kawara export runs/photos-1/model.safetensors --to web                         model-web/, a page for browsers
  kawara export runs/photos-1/model.safetensors --merge auto --data photos/      a faster ViT: tokens that are alike become one
  kawara export runs/photos-1/model.safetensors --precision int8 --data photos/  layers in int8, calibrated on the training images
  kawara predict runs/photos-1/model.onnx new/*.jpg                              as with the model file

The graph takes raw uint8 images (batch, height, width, channels) of any size and gives probabilities: resize, crop and colours are inside.
An export that differs from torch by more than 1e-4 (fp32), or loses more than --max-drop, is kept as NAME.rejected only; exit code 3.
"""

BENCH_EPILOG = """\
examples:
  kawara bench runs/photos-1/model.safetensors                       torch, torch.compile, ONNX Runtime, OpenVINO
  kawara bench vit_tiny_16 --twin --image-size 224,384,512           a ViT and the CNN of its size, over the size of the image
  kawara bench runs/photos-1/model.safetensors runs/photos-1/model.onnx --threads 1,2 --batch 1,8
  kawara bench vit.safetensors cnn.safetensors --data photos/        accuracy against latency

Models of `kawara models` run with weights of chance: time does not depend on them. Everything takes turns in one process, so that
what else the machine does meets all alike. compile needs a C++ compiler and takes up to a minute for each model.
"""


def _names(text: str) -> tuple[str, ...]:
    """Return the names of "a,b,c"."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of "1,5,10"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas between them are expected, such as 1,5,10; got {text!r}") from None


def _profile(text: str) -> tuple[int, ...]:
    """Return the numbers of "threads=1,2"."""
    name, _, numbers = text.partition("=")
    if name != "threads":
        raise argparse.ArgumentTypeError(f"{text!r} is not like threads=1,2")
    return _numbers(numbers)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 for a user's mistake, 3 for an export that was refused, 1 for ours, 130 after Ctrl-C."""
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
        if code and "--json" in (sys.argv[1:] if arguments is None else arguments):
            print(json.dumps({"error": "UsageError", "message": "the command line cannot be understood; stderr says why"}))
        return code
    options.command_line = sys.argv[1:] if arguments is None else arguments
    if options.version:
        from kawara import __version__

        print(__version__)
        return 0
    if options.verb is None:
        parser.print_help()
        return 0
    try:
        with _terminated_as_by_ctrl_c():
            from kawara import terminal

            return terminal.run(options, started_at=STARTED_AT if arguments is None else time.monotonic())
    except KeyboardInterrupt:
        if options.json:
            print(json.dumps({"error": "Interrupted", "message": "stopped by Ctrl-C or SIGTERM; stderr says how to go on"}))
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except ProcessLostError as error:  # whoever started both knows what ended the other
        return error.exit_code if "KAWARA_STARTED_BY_DEVICES" in os.environ else _fail(options, error, error.exit_code)
    except KawaraError as error:
        return _fail(options, error, error.exit_code)
    except Exception as error:
        import traceback

        from kawara.files import os_error_in

        found = os_error_in(error)
        if found is not None and found.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(options, UserError("No space is left on the disk.", got=error, remedy="free some, then the same command again"), 2)
        traceback.print_exc()
        return _fail(options, error, 1)


@contextlib.contextmanager
def _terminated_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM (kill, a batch system, a shutdown) end the verb as Ctrl-C does: what is half-written is cleared away."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: signals belong to somebody else
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(options: argparse.Namespace, error: BaseException, code: int) -> int:
    prefix = "kawara" if isinstance(error, UserError) else "kawara: this is our mistake, please report it"
    print(f"{prefix}: {error}", file=sys.stderr)
    if options.json:
        report: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(report, ensure_ascii=False))
    return code


if __name__ == "__main__":
    sys.exit(main())
