"""The format of Hugging Face transformers: a folder with config.json, model.safetensors and preprocessor_config.json."""

from kawara.weights.foreign import Format
from kawara.weights.huggingface.reading import read, recognises
from kawara.weights.huggingface.writing import differences, write

__all__ = ["FORMAT", "differences", "write"]

FORMAT = Format("huggingface", recognises, read)
