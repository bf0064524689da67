"""What `import kawara` promises."""

from __future__ import annotations

import subprocess
import sys

import kawara


def test_public_names_are_sorted_and_there():
    assert kawara.__all__ == sorted(kawara.__all__)
    assert dir(kawara) == kawara.__all__
    for name in kawara.__all__:
        assert getattr(kawara, name).__doc__, f"{name} has no docstring"


def test_importing_kawara_is_cheap():
    code = "import sys, kawara; sys.exit([name for name in ('torch', 'numpy', 'PIL', 'matplotlib') if name in sys.modules] or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_train_stays_the_function_after_everything_is_imported():
    import kawara.cli
    import kawara.verbs.training

    assert kawara.train is kawara.verbs.training.train
    assert callable(kawara.evaluate)
