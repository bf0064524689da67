from kawara.weights.model_file import load_model


def open_model(source, *, hints=None, device="cpu"):
    return (*load_model(source, device), None)
