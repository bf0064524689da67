import torch


@torch.no_grad()
def extract(model, loader, dtype=None, progress=None):
    model.eval()
    out = []
    n = 0
    for b in loader:
        with torch.autocast(b.images.device.type, dtype=dtype, enabled=dtype is not None):
            f = model.features(b.images)
        out.append(torch.stack([f.pooled] + ([f.distillation] if f.distillation is not None else []), 1).float())
        n += len(b.labels)
        if progress:
            progress(n)
    return torch.cat(out)
