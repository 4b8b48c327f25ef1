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


GET_MODEL = 'get_model("uniad", backbone="resnet10_synthetic")'
ARGUMENTS = '"init_args": {"backbone": "resnet10_synthetic", "layers": [0, 1, 2, 3], "neighbor_size": [5, 5]}'


@pytest.mark.parametrize(
    "code",
    [
        f"from anomalib.models import get_model; m = {GET_MODEL}",
        f'from anomalib.models import get_model; m = get_model({{"class_path": "UniAD", {ARGUMENTS}}})',
        f"import torch; from anomalib.models import get_model; m = {GET_MODEL}",
        f"import anomalib.data; from anomalib.models import get_model; m = {GET_MODEL}",
        f"from anomalib.engine import Engine; from anomalib.models import get_model; m = {GET_MODEL}",
        'from anomalib.models import UniAD; m = UniAD(backbone="resnet10_synthetic")',
        'from anomalib_uniad import UniAD; m = UniAD(backbone="resnet10_synthetic")',
        'from anomalib_uniad.model import UniAD; m = UniAD(backbone="resnet10_synthetic")',
        'from anomalib_uniad.model.lightning_model import UniAD; m = UniAD(backbone="resnet10_synthetic")',
    ],
)
def test_model_is_found(code: str) -> None:
    check = "; from anomalib.models import list_models; print(type(m).__module__, 'uni_a_d' in list_models())"
    assert run(code + check) == "anomalib_uniad.model.lightning_model True"


@pytest.mark.parametrize(
    "imports",
    [
        "from anomalib.data import MultiCategory, SyntheticProducts",
        "import torch; from anomalib.data import MultiCategory, SyntheticProducts",
        "from anomalib.models import Padim; from anomalib.data import MultiCategory, SyntheticProducts",
        "from anomalib_uniad import MultiCategory, SyntheticProducts",
        "from anomalib_uniad.synthetic.synthetic_products import SyntheticProducts\n"
        "from anomalib_uniad.data import MultiCategory",
    ],
)
def test_datamodules_are_found(imports: str) -> None:
    check = "; from anomalib import data; print(data.MultiCategory is MultiCategory, data.SyntheticProducts.__name__)"
    assert run(imports + check) == "True SyntheticProducts"


def test_import_torch_stays_light() -> None:
    code = (
        "import sys, torch; print(any(n in sys.modules for n in "
        "('anomalib', 'lightning', 'timm', 'anomalib_uniad.model', 'anomalib_uniad.data')))"
    )
    assert run(code) == "False"


def test_the_package_imports_nothing_by_itself() -> None:
    code = "import sys, anomalib_uniad.plugin; print('torch' in sys.modules, 'anomalib' in sys.modules)"
    assert run(code) == "False False"


def test_no_trace_is_left() -> None:
    code = (
        "import anomalib.models, sys; from anomalib.models import ALLOWED_MODULES; "
        "print(any('anomalib_uniad' in type(f).__module__ for f in sys.meta_path), "
        "any('uniad' in name for name in ALLOWED_MODULES), type(anomalib.models.__loader__).__name__)"
    )
    assert run(code) == "False False SourceFileLoader"


def test_without_autoload_the_dotted_path_works() -> None:
    code = (
        "import anomalib.models; print(hasattr(anomalib.models, 'UniAD')); "
        "from anomalib_uniad import UniAD, MultiCategory; "
        "from anomalib.models import get_model; print(type(get_model('uniad', backbone='resnet10_synthetic')).__name__)"
    )
    assert run(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0").split() == ["False", "UniAD"]


def test_a_broken_plugin_warns_and_the_rest_works(tmp_path: Path) -> None:
    folder = fake_plugin(
        tmp_path,
        "brokenplugin",
        "[anomalib.models]\nBroken = brokenplugin:Broken\nGone = nowhere_at_all:Gone\n",
        "raise OSError('disk on fire')\n",
    )
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import anomalib.models\n"
        "for w in caught:\n"
        "    if 'plugin' in str(w.message): print(w.category.__name__, w.message)\n"
        "print(anomalib.models.UniAD.__name__)\n"
    )
    output = run(code, folder)
    assert "RuntimeWarning The plugin 'brokenplugin:Broken'" in output
    assert "OSError: disk on fire" in output
    assert "'nowhere_at_all:Gone'" in output
    assert output.splitlines()[-1] == "UniAD"


def test_other_plugins_are_found_too(tmp_path: Path) -> None:
    code = "from anomalib.models import Padim\n\n\nclass Mine(Padim):\n    pass\n"
    folder = fake_plugin(tmp_path, "otherplugin", "[anomalib.models]\nMine = otherplugin:Mine\n", code)
    assert run("from anomalib.models import Mine; print(Mine.__module__)", folder) == "otherplugin"


def test_what_anomalib_already_has_is_left_alone(tmp_path: Path) -> None:
    folder = fake_plugin(tmp_path, "shadow", "[anomalib.models]\nPadim = shadow:Padim\n", "class Padim: pass\n")
    assert run("from anomalib.models import Padim; print(Padim.__module__)", folder).startswith("anomalib.models")


def test_looking_for_a_module_without_importing_it_changes_nothing() -> None:
    code = (
        "import torch; from importlib.util import find_spec; find_spec('anomalib'); find_spec('anomalib.models'); "
        "import anomalib.models; print(anomalib.models.UniAD.__name__)"
    )
    assert run(code) == "UniAD"


def test_installing_twice_changes_nothing() -> None:
    code = (
        "import sys; from anomalib_uniad.plugin import install; install(); install(); "
        "print(sum('anomalib_uniad' in type(f).__module__ for f in sys.meta_path)); "
        "import torch; from anomalib.models import UniAD; import anomalib.data; anomalib.data.MultiCategory; "
        "install(); print(UniAD.__name__)"
    )
    assert run(code).split() == ["1", "UniAD"]
