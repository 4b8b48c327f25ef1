# SPDX-License-Identifier: Apache-2.0
"""How anomalib finds the plugin; every case in a fresh process, with nothing imported by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, *paths: Path, **environment: str) -> str:
    """Run code in a fresh interpreter, warnings as errors where they are the plugin's; return its output."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, paths), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    result = subprocess.run(
        [sys.executable, "-W", "error:The plugin:RuntimeWarning", "-c", code],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def fake_plugin(folder: Path, name: str, entry_points: str, code: str = "") -> Path:
    """An installed distribution with entry points, as far as importlib.metadata can tell."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / f"{name}.py").write_text(code)
    return folder


MODELS = """
from anomalib.models import get_model, list_models
model = get_model("uniad", backbone="mobilenetv3_small_050", pre_trained=False)
assert type(model).__module__ == "anomalib_uniad.model.lightning_model", type(model)
init_args = {"backbone": "mobilenetv3_small_050", "pre_trained": False}
assert type(get_model({"class_path": "UniAD", "init_args": init_args})) is type(model)
assert "uni_a_d" in list_models()
"""
DATAMODULES = """
import anomalib_uniad
from anomalib import data
for name in ("CIFAR10", "MetaFile", "MultiCategory", "SyntheticProducts"):
    assert getattr(data, name) is getattr(anomalib_uniad, name), name
"""
NO_TRACE = """
import sys, anomalib.models
waiting = [[*finder.waiting] for finder in sys.meta_path if "anomalib_uniad" in type(finder).__module__]
assert waiting == [["anomalib.cli.cli"]], waiting
assert not any("uniad" in name for name in anomalib.models.ALLOWED_MODULES)
assert type(anomalib.models.__loader__).__name__ == "SourceFileLoader"
"""


@pytest.mark.parametrize(
    "first",
    [
        "from anomalib_uniad import MultiCategory, SyntheticProducts",
        *(
            pytest.param(code, marks=pytest.mark.slow)
            for code in (
                "from anomalib.models import get_model",
                "import torch",
                "import anomalib.data",
                "from anomalib.engine import Engine",
                "from anomalib.models import UniAD",
                "from anomalib_uniad import UniAD",
                "from anomalib_uniad.model.lightning_model import UniAD",
                "from anomalib_uniad.data import MultiCategory",
                "from anomalib_uniad.synthetic.synthetic_products import SyntheticProducts",
            )
        ),
    ],
)
def test_models_and_datamodules_are_found_whatever_is_imported_first(first: str) -> None:
    run(first + MODELS + DATAMODULES + NO_TRACE)


@pytest.mark.slow
def test_import_torch_stays_light() -> None:
    run(
        "import sys, anomalib_uniad.plugin\n"
        "assert not {'torch', 'anomalib'} & set(sys.modules)\n"
        "anomalib_uniad.plugin.install(); anomalib_uniad.plugin.install()\n"
        "assert sum('anomalib_uniad' in type(finder).__module__ for finder in sys.meta_path) == 1\n"
        "import torch\n"
        "heavy = {'anomalib', 'lightning', 'timm', 'anomalib_uniad.model', 'anomalib_uniad.data'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from importlib.util import find_spec\n"
        "find_spec('anomalib'); find_spec('anomalib.models')  # looking for a module is not importing it\n"
        "from anomalib.models import UniAD\n"
        "import anomalib.data; anomalib.data.MultiCategory\n"
        "anomalib_uniad.plugin.install()\n" + MODELS + DATAMODULES + NO_TRACE
    )


@pytest.mark.slow
def test_without_autoload_the_dotted_path_works() -> None:
    code = (
        "import anomalib.models; assert not hasattr(anomalib.models, 'UniAD')\n"
        "from anomalib_uniad import UniAD, MultiCategory\n"
        "from anomalib.models import get_model\n"
        "assert type(get_model('uniad', backbone='mobilenetv3_small_050', pre_trained=False)) is UniAD\n"
    )
    run(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")


@pytest.mark.slow
def test_other_plugins(tmp_path: Path) -> None:
    """A broken plugin warns and the rest works; another one is found; what anomalib has is left alone."""
    fake_plugin(
        tmp_path,
        "brokenplugin",
        "[anomalib.models]\nBroken = brokenplugin:Broken\nGone = nowhere_at_all:Gone\n",
        "raise OSError('disk on fire')\n",
    )
    mine = "from anomalib.models import Padim\n\n\nclass Mine(Padim):\n    pass\n"
    fake_plugin(tmp_path, "otherplugin", "[anomalib.models]\nMine = otherplugin:Mine\n", mine)
    fake_plugin(tmp_path, "shadow", "[anomalib.models]\nPadim = shadow:Padim\n", "class Padim: pass\n")
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import anomalib.models\n"
        "for w in caught:\n"
        "    if 'plugin' in str(w.message): print(w.category.__name__, w.message)\n"
        "from anomalib.models import Mine, Padim, UniAD\n"
        "print(Mine.__module__, Padim.__module__.startswith('anomalib.models'), UniAD.__name__)\n"
    )
    output = run(code, tmp_path)
    assert "RuntimeWarning The plugin 'brokenplugin:Broken'" in output
    assert "OSError: disk on fire" in output
    assert "'nowhere_at_all:Gone'" in output
    assert output.splitlines()[-1] == "otherplugin True UniAD"
