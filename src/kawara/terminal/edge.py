"""What the verbs that lead to other run times print: convert, export, bench."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from rich.table import Table

from kawara.terminal.printing import plain, print_json, stdout
from kawara.training.progress import Reporter

if TYPE_CHECKING:
    from kawara.edge.certificate import Certificate


def convert(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.weights.foreign import Hints

    hints = Hints(heads=options.heads, normalisation=options.normalise)
    conversion = verbs.convert(options.source, options.destination, options.to, hints)
    if options.json:
        print_json(conversion.to_dict())
        return 0
    table = Table("in the source", "in kawara", "tensors", "", "how", box=None, pad_edge=False)
    for group in conversion.groups():
        table.add_row(*(plain(text or "–") for text in (group.source, group.target, str(group.count), group.what, group.how)))
    stdout().print(table)
    print(f"\n{conversion.total}")
    for note in conversion.notes:
        print(f"note: {note}")
    config, card = conversion.card.config, conversion.card
    height, width = config.image_size
    print(f"\nmodel   {card.name}: {conversion.num_parameters:,} parameters, {height}×{width} px, {len(card.class_names) or 'no'} classes")
    for path in conversion.files:
        print(f"wrote   {path}")
    return 0


def export(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs

    with Reporter() as reporter:
        exported = verbs.export(
            options.model,
            to=options.to,
            out=options.out,
            precision=options.precision,
            data=options.data,
            max_drop=options.max_drop,
            runtime=options.runtime,
            merge=options.merge,
            calibrate=options.calibrate,
            fallback=options.fallback,
            weight_bits=options.weight_bits,
            reporter=reporter,
        )
    certificate = exported.certificate
    if options.json:
        print_json(exported.to_dict())
    else:
        for path in exported.files:
            print(f"wrote   {path}")
        print(f"wrote   {exported.certificate_path}")
        print(_certificate_line(certificate))
        if certificate.int8 is not None:
            print("\n".join(_int8_lines(certificate.int8)))
        if options.to == "web" and certificate.accepted:
            print(f"\nTo try it: python -m http.server -b 127.0.0.1 -d {exported.files[0]}, and open http://127.0.0.1:8000")
    for reason in certificate.refused:
        print(f"kawara: {certificate.file} is refused: {reason}.", file=sys.stderr)
    return 0 if certificate.accepted else 3


def _certificate_line(certificate: Certificate) -> str:
    difference = "not numbers" if certificate.max_difference is None else f"largest difference {certificate.max_difference:.1e}"
    parts = [
        f"{certificate.num_bytes / 1e6:.1f} MB",
        f"same answer for {certificate.agreement:.1%} of {certificate.num_images:,}, {difference}",
    ]
    if certificate.accuracy is not None:
        before, after = certificate.accuracy["torch"], certificate.accuracy["export"]
        low, high = after["top1_ci95"]
        parts.append(f"top-1 {after['top1']:.2%} ({low:.2%} – {high:.2%}), torch {before['top1']:.2%}")
    before, after = certificate.latency["torch"], certificate.latency["export"]
    parts.append(f"p50 {after['p50_ms']:.1f} ms, p95 {after['p95_ms']:.1f}, torch {before['p50_ms']:.1f}, {before['p95_ms']:.1f}")
    if "fp32" in certificate.latency:
        parts.append(f"{certificate.latency['speedup']:.2f} times as fast as fp32 ({certificate.latency['fp32']['p50_ms']:.1f} ms)")
    return " · ".join(parts)


def _int8_lines(record: dict[str, Any]) -> list[str]:
    """Return what there is to say of an int8 export: what was chosen, what stayed in float, which layers are to blame."""
    chosen = next(variant for variant in record["variants"] if variant["chosen"])
    calibration, kept = record["calibration"], record["float_layers"]
    smoothing = "SmoothQuant, " if chosen["smoothing"] else ""
    lines = [
        f"int8    {record['num_layers'] - len(kept)} of {record['num_layers']} layers, weights of {record['weight_bits']} bits, {smoothing}"
        f"ranges by {chosen['ranges']} on {calibration['num_images']} images ({calibration['images']})"
    ]
    if kept:
        lines.append(f"float   {', '.join(kept)}")
    lines += [
        f"blame   {damage['layer']}: KL {damage['kl']:.2g}, SNR {damage['snr_db']:.1f} dB, same answer {damage['agreement']:.1%}"
        for damage in (record["layers"] or [])[:5]
    ]
    return lines


def bench(options: argparse.Namespace, started_at: float) -> int:
    from kawara import verbs
    from kawara.report.bench_page import bench_table, sentence

    request = verbs.BenchRequest(
        models=options.models,
        threads=options.threads,
        batches=options.batch,
        image_sizes=options.image_size,
        run_times=options.runtime,
        data=options.data,
        twin=options.twin,
        match=options.match,
        seconds=options.seconds,
        out=options.out,
    )
    with Reporter() as reporter:
        found = verbs.bench(request, reporter)
    if options.json:
        print_json(found.to_dict())
        return 0
    print()
    stdout().print(bench_table(found.record))
    for failure in found.record["failures"]:
        print(f"{failure['model']}, {failure['run_time']}: {failure['reason']}")
    print(f"\n{sentence(found.record).en}\n\nreport  {found.report}")
    return 0
