"""Model files: the self-describing kawara format."""

from kawara.weights.model_file import ModelCard, load_model, read_card, save_model

__all__ = ["ModelCard", "load_model", "read_card", "save_model"]
