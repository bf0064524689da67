"""Run the heavy tests behind docs/promises.md, and keep what they measured.

    python benchmarks/promises.py

Needs ../shared; about fifteen minutes. The record goes to benchmarks/measured/promises.json, from which benchmarks/write_results.py makes
docs/results.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import record

TESTS = {
    "killed (SIGKILL) at random moments, then the same command until it is done: the same bits": "integration/test_resume.py::test_twenty_kills_at_random_moments_leave_the_same_bits",
    "a kill in each of 21 phases, from decoding to the last file: the same bits": "integration/test_resume.py::test_a_kill_in_each_phase_leaves_the_same_bits",
    "another seed: another hash; 0 and 4 workers: the same": "integration/test_resume.py::test_the_seed_decides_and_the_number_of_workers_does_not",
    "copies planted among distinct photos (re-encoded, resized, mirrored, brighter)": "unit/data/test_duplicates.py::test_copies_of_real_photos_are_found_and_distinct_photos_are_not",
    "faults among real photos, each listed by path and reason": "integration/test_check.py::test_real_odd_files_among_real_photos",
    "10,000 damaged image files": "unit/data/test_decode_hostile.py::test_ten_thousand_damaged_files",
    "`--devices 2` against one process, 20 steps": "integration/test_many_processes.py::test_many_processes_give_the_model_of_one_and_one_of_them_speaks[devices]",
    "`torchrun`, 3 processes, against one, 20 steps": "integration/test_many_processes.py::test_many_processes_give_the_model_of_one_and_one_of_them_speaks[torchrun]",
    "a process that is killed ends the run, which goes on with one": "integration/test_many_processes.py::test_a_process_that_dies_ends_the_run_with_a_message_and_the_run_goes_on",
    "the model divided among 2 processes (FSDP2) against whole": "integration/test_many_processes.py::test_a_divided_model_is_trained_and_reported",
    "6 classes of 450 images at rate 0.1 (deit #72): stopped; top-1 of the command that it proposes": "integration/test_doctor.py::test_deit_72_is_stopped_and_the_command_beats_chance_by_30_points",
}


def main() -> None:
    tests = Path(__file__).resolve().parent.parent / "tests"
    cases = []
    for promise, test in TESTS.items():
        with tempfile.NamedTemporaryFile(suffix=".xml") as report:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "", f"{tests / test}", f"--junitxml={report.name}"]
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=tests.parent)
            (case,) = ElementTree.parse(report.name).getroot().iter("testcase")
        outcome = "failed" if case.find("failure") is not None or case.find("error") is not None else "passed"
        outcome = "skipped" if case.find("skipped") is not None else outcome
        measured = {each.get("name"): each.get("value") for each in case.iter("property")}
        cases.append({"promise": promise, "test": test, "outcome": outcome, "seconds": float(case.get("time", 0)), "measured": measured})
        print(f"{outcome} in {cases[-1]['seconds']:.0f} s: {promise} {measured}", flush=True)
        record.write("promises", cases)


if __name__ == "__main__":
    main()
