"""Model files: the self-describing kawara format, and the checkpoints of others."""

from kawara.weights.importing import create_model, open_model
from kawara.weights.model_file import ModelCard, load_model, read_card, save_model

__all__ = ["ModelCard", "create_model", "load_model", "open_model", "read_card", "save_model"]
