"""Import of PDEBench-layout HDF5 and .npy stacks: exact values, explicit grids, one-line refusals."""

import json
import os
from collections.abc import Callable, Sequence

import h5py
import numpy as np
import pytest
import torch

from envs.data import imports
from envs.data.datasets import FieldFile, violations
from envs.data.descriptions import Description, ImportDescriptionError
from envs.data.imports import ImportedFields, import_fields, sha256
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.pdes import REGISTRY, make_pde
from envs.pdes.base import PDE
from pirf_ray import data

N, SEED = 6, 1


class Double(PDE):
    """u = 2 a on the unit square, vertices; rows x, columns y."""

    env_id = "Double-v0"
    equation = "u = 2 a"
    channels = ("a", "u")
    units = "dimensionless"
    solver = "exact"
    default_operator = "consistent"
    unrewarded_operator = "same"
    default_resolution = 8

    @property
    def grid(self) -> Grid:
        n = self.resolution
        return Grid(
            rows=Axis(name="x", extent=1.0, size=n, layout="vertex"), columns=Axis(name="y", extent=1.0, size=n, layout="vertex")
        )

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(scale=(1.0, 1.0), shift=(0.0, 0.0))

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        a = torch.stack([torch.full(self.grid.shape, 0.1 + i, dtype=torch.float64) for i in sample_ids])
        return torch.stack([a, 2 * a], dim=1)

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {name: lambda fields: fields[:, 1:] - 2 * fields[:, :1] for name in ("consistent", "same")}

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        return fields

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        return fields.new_zeros(len(fields))

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        return fields.new_ones(len(fields))

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        return fields[:, 0]


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setitem(REGISTRY._parts, "Double-v0", Double)
    return make_pde("Double-v0")


@pytest.fixture
def burgers():
    return make_pde("Burgers-v0", 8)


@pytest.fixture
def pdebench(tmp_path, burgers):
    """PDEBench's layout of 1D Burgers: 15 rows in t, 32 cells in x; our grid's points hold our fields, the others junk."""
    tensor = np.full((N, 15, 32), 1e9, dtype="f4")
    tensor[:, ::2, ::4] = burgers.solve(SEED, "other", range(N))[:, 0].numpy()
    path = tmp_path / "1D_Burgers_Nu0.01.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = tensor
        file["t-coordinate"] = np.linspace(0, 15 / 14, 16, dtype="f4")
        file["x-coordinate"] = ((np.arange(32) + 0.5) / 32).astype("f4")
    return path


def description(path, **axes):
    """Of the PDEBench file."""
    tables = {"t": {"stride": 2}, "x": {"stride": "::4", "origin": 0.5 / 32}, **axes}
    channel = {"file": path.name, "dataset": "tensor", "axes": ["sample", "t", "x"]}
    return Description.parse({"channels": {"u": channel}, "axes": tables}, path.parent)


def truth(pde, ids=range(N)):
    return pde.solve(SEED, "other", ids).float()


def test_pdebench_burgers_is_imported_exactly_and_says_where_it_is_from(tmp_path, pdebench, burgers):
    out = tmp_path / "out.h5"
    floors = import_fields(out, ImportedFields(burgers, description(pdebench)), chunk_size=4)
    file = FieldFile(out, burgers)
    assert torch.equal(file.read(range(N)), truth(burgers))
    assert (file.seed, file.stream, file.floors) == (0, "imported:1D_Burgers_Nu0.01.hdf5", floors)
    assert floors["consistent"] == pytest.approx(burgers.residual(truth(burgers).double(), "consistent").mean().item(), rel=1e-9)
    assert violations(out, burgers) == [] and imports.suspicion(burgers, floors) is None
    with h5py.File(out) as opened:
        source, solver = json.loads(opened.attrs["source"]), opened.attrs["solver"]
    assert solver == "imported" and source["files"] == {pdebench.name: sha256(pdebench)}
    assert str(tmp_path) not in json.dumps(source)
    assert source["channels"]["u"]["dataset"] == "tensor" and source["axes"]["t"]["stride"] == "2"


def test_a_part_of_the_samples_may_be_taken(tmp_path, pdebench, burgers):
    fields = ImportedFields(burgers, description(pdebench, sample={"stride": "1:6:2"}))
    assert len(fields) == 3
    assert torch.equal(fields.read(range(1, 3)).float(), truth(burgers, [3, 5]))
    import_fields(tmp_path / "out.h5", fields, num_samples=2)
    assert len(FieldFile(tmp_path / "out.h5", burgers)) == 2
    with pytest.raises(ValueError, match=r"num_samples must be in \[1, 3\], .* got 4"):
        import_fields(tmp_path / "more.h5", fields, num_samples=4)


def test_an_import_continues_where_it_was_stopped(tmp_path, pdebench, burgers, monkeypatch):
    def interrupted(parts):
        yield parts[0]
        raise KeyboardInterrupt

    fields = ImportedFields(burgers, description(pdebench))
    import_fields(tmp_path / "whole.h5", fields, chunk_size=2)
    with pytest.raises(KeyboardInterrupt, match="2 of 6 samples are kept"):
        import_fields(tmp_path / "out.h5", fields, chunk_size=2, progress=interrupted)
    other = ImportedFields(burgers, description(pdebench, sample={"stride": "0:6"}))
    with pytest.raises(ValueError, match="another request: source was"):
        import_fields(tmp_path / "out.h5", other, chunk_size=2)
    import_fields(tmp_path / "out.h5", fields, chunk_size=2)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"x": {"stride": 4}}, r"axis 'x'.*point 0 lies at 0.015625, expected 0. Nothing is interpolated"),
        ({"x": {"stride": 2, "origin": 0.5 / 32}}, r"gives 16 points from 0 to 0.9375 with stride 2, the grid has 8 points"),
        ({"t": {"stride": "0:8"}}, r"axis 't': gives 8 points .*the grid has 8 points from 0 to 1.*point 1 lies at 0.0714"),
        ({"t": {"stride": "40:"}}, "takes none of 15 points"),
        ({"t": {"stride": "-2"}}, "stride must be a step such as 4"),
        ({"t": {"stride": 2, "coordinates": "time"}}, "no dataset 'time' of 15 coordinates"),
        ({"t": {"stride": 2, "extent": 1.0}}, r"give coordinates, or extent and layout \(periodic, vertex, cell\)"),
        ({"t": {"stride": 2, "extent": 1.0, "layout": "cell"}}, "axis 't'.*point 0 lies at 0.0333"),
        ({"z": {"stride": 2}}, "unknown axis 'z'; Burgers-v0 has t, x"),
        ({"t": {"step": 2}}, "axes.t: unknown key 'step'; known: stride, coordinates"),
        ({"t": {"origin": "0"}}, "axes.t.origin must be a number, got '0'"),
    ],
)
def test_another_grid_is_refused_with_what_differs(pdebench, burgers, axes, message):
    with pytest.raises(ImportDescriptionError, match=message):
        ImportedFields(burgers, description(pdebench, **axes))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"v": {}}, r"channels must be those of Burgers-v0 \(u\), got v"),
        ({"u": {"dataset": "u"}}, "no such dataset; the file has 't-coordinate', 'tensor', 'x-coordinate'"),
        ({"u": {"axes": ["sample", "x"]}}, r"shape \(6, 15, 32\), axes name 2: sample, x"),
        ({"u": {"axes": ["t", "x", "sample"]}}, "axis 't'"),
        ({"u": {"axes": ["sample", "t", "t"]}}, "axes must name 't' once"),
        ({"u": {"axes": "sample"}}, "channels.u.axes must be a list of axis names, got 'sample'"),
        ({"u": {"index": {"time": 0}}}, r"index must give a position on each other axis \(none\), got time"),
        ({"u": {"index": {"time": -1}}}, "channels.u.index must be a table of positions"),
        ({"u": {"file": "gone.hdf5"}}, "gone.hdf5, dataset 'tensor'.: no such file"),
        ({"u": {"scale": True}}, "channels.u.scale must be a number, got True"),
    ],
)
def test_descriptions_that_the_files_contradict_are_refused(pdebench, burgers, channels, message):
    usual = {"file": pdebench.name, "dataset": "tensor", "axes": ["sample", "t", "x"]}
    tables = {name: {**usual, **changed} for name, changed in channels.items()}
    axes = {"t": {"stride": 2}, "x": {"stride": 4, "origin": 0.5 / 32}}
    with pytest.raises((ImportDescriptionError, FileNotFoundError), match=message):
        ImportedFields(burgers, Description.parse({"channels": tables, "axes": axes}, pdebench.parent))


# --- two channels ---


def unit_square(stride=1):
    return {axis: {"extent": 1.0, "layout": "vertex", "stride": stride} for axis in "xy"}


@pytest.fixture
def fields(double):
    """Fields (N, 2, 8, 8) that no symmetry leaves as they are."""
    a = torch.from_numpy(np.random.default_rng(0).standard_normal((N, 8, 8)).astype("f4"))
    return torch.stack([a, 2 * a], dim=1)


def test_pdebench_darcy_layout_with_its_singleton_axis(tmp_path, double, fields):
    with h5py.File(tmp_path / "2D_DarcyFlow.hdf5", "w") as file:
        file["nu"], file["tensor"] = fields[:, 0].numpy(), fields[:, 1:].numpy()
        file["x-coordinate"] = file["y-coordinate"] = np.linspace(0, 1, 8, dtype="f4")
    (tmp_path / "darcy.toml").write_text(
        """
        [channels.a]
        file = "2D_DarcyFlow.hdf5"
        dataset = "nu"
        axes = ["sample", "x", "y"]
        [channels.u]
        file = "2D_DarcyFlow.hdf5"
        dataset = "tensor"
        axes = ["sample", "time", "x", "y"]
        index = {time = 0}
        """
    )
    imported = ImportedFields(double, Description.read(tmp_path / "darcy.toml"))
    assert torch.equal(imported.read(range(N)).float(), fields)


def test_npy_stacks_of_any_order_of_axes_and_units(tmp_path, double, fields):
    """One channel a file: u transposed, in other units, on a grid twice as fine."""
    fine = np.full((15, 15, N), 1e9, dtype="f8")
    fine[::2, ::2] = (fields[:, 1].numpy().transpose(2, 1, 0) - 0.5) / 4
    np.save(tmp_path / "a.npy", np.asfortranarray(fields[:, 0].numpy()))
    np.save(tmp_path / "u.npy", fine)
    a = {"file": "a.npy", "axes": ["sample", "x", "y"]}
    u = {"file": "u.npy", "axes": ["y", "x", "sample"], "scale": 4, "offset": 0.5}
    with pytest.raises(ImportDescriptionError, match=r"channel 'a'.*gives 4 points"):
        ImportedFields(double, Description.parse({"channels": {"a": a, "u": u}, "axes": unit_square(2)}, tmp_path))
    np.save(tmp_path / "a.npy", np.repeat(np.repeat(fields[:, 0].numpy(), 2, 1), 2, 2)[:, :15, :15])
    imported = ImportedFields(double, Description.parse({"channels": {"a": a, "u": u}, "axes": unit_square(2)}, tmp_path))
    torch.testing.assert_close(imported.read(range(2, 5)).float(), fields[2:5], rtol=1e-6, atol=1e-6)


def merged(directory, fields):
    """DiffusionPDE's training files: one (x, y, channel) a sample, shifted and scaled."""
    directory.mkdir()
    for i, (a, u) in enumerate(fields.double().numpy()):
        np.save(directory / f"merge_{i + 7}.npy", np.stack((a * 0.2 - 1.5, u * 115 - 0.9), axis=-1))


def test_a_directory_of_samples_is_read_in_the_order_of_its_numbers(tmp_path, double, fields):
    merged(tmp_path / "Darcy-merged", fields)
    axes = ["x", "y", "channel"]
    a = {"file": "Darcy-merged", "axes": axes, "index": {"channel": 0}, "scale": 5.0, "offset": 7.5}
    u = {"file": "Darcy-merged", "axes": axes, "index": {"channel": 1}, "scale": 1 / 115, "offset": 0.9 / 115}
    imported = ImportedFields(double, Description.parse({"channels": {"a": a, "u": u}, "axes": unit_square()}, tmp_path))
    torch.testing.assert_close(imported.read(range(N)).float(), fields, rtol=1e-5, atol=1e-5)
    floors = import_fields(tmp_path / "out.h5", imported)
    assert floors["consistent"] < 1e-12
    np.save(tmp_path / "Darcy-merged" / "merge_9.npy", np.zeros((8, 4, 2)))
    with pytest.raises(ImportDescriptionError, match=r"a file has shape \(8, 4, 2\), the first has \(8, 8, 2\)"):
        imported.read(range(N))


def code_runs(path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(path.with_name("ran")),)

    return np.array([Bomb()], dtype=object)


@pytest.mark.parametrize("kind", ["object", "complex", "text", "npz", "cut short", "empty directory"])
def test_npy_files_of_anything_but_numbers_are_refused(tmp_path, double, kind):
    path = tmp_path / "a.npy"
    if kind == "object":
        np.save(path, code_runs(path), allow_pickle=True)
    elif kind == "complex":
        np.save(path, np.zeros((N, 8, 8), dtype="c8"))
    elif kind == "text":
        path.write_text("not numbers")
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros((N, 8, 8)))
    elif kind == "cut short":
        np.save(path, np.zeros((N, 8, 8)))
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.mkdir()
    axes = ["sample", "x", "y"] if path.is_file() else ["x", "y"]
    channels = {name: {"file": "a.npy", "axes": axes} for name in "au"}
    with pytest.raises(ImportDescriptionError, match=r"channel 'a' .*a\.npy"):
        ImportedFields(double, Description.parse({"channels": channels, "axes": unit_square()}, tmp_path))
    assert not (tmp_path / "ran").exists()


def test_channels_of_different_lengths_and_samples_not_finite_are_refused(tmp_path, double, fields):
    a, u = fields[:, 0].numpy().copy(), fields[:, 1].numpy()
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "u.npy", u[:4])
    channels = {name: {"file": f"{name}.npy", "axes": ["sample", "x", "y"]} for name in "au"}
    described = Description.parse({"channels": channels, "axes": unit_square()}, tmp_path)
    with pytest.raises(ImportDescriptionError, match=r"differ in their number of samples: \{'a': 6, 'u': 4\}"):
        ImportedFields(double, described)
    a[3, 1, 1] = np.nan
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "u.npy", u)
    with pytest.raises(ValueError, match="sample 3 is not finite"):
        import_fields(tmp_path / "out.h5", ImportedFields(double, described))
    assert not (tmp_path / "out.h5").exists()


def test_toml_that_is_none_is_refused(tmp_path):
    (tmp_path / "d.toml").write_text("channels = [")
    with pytest.raises(ImportDescriptionError, match=r"d\.toml: not a TOML file"):
        Description.read(tmp_path / "d.toml")


# --- the command ---


def test_the_command_imports_pdebench(tmp_path, pdebench, burgers, capsys):
    flags = ["--import-pdebench", str(pdebench), "--channel", "u=tensor", "--axes", "sample,t,x"]
    grid = ["--stride", "t=2", "x=4", "--origin", f"x={0.5 / 32}"]
    data.main(["--resolution", "8", "--out", str(tmp_path / "out.h5"), *flags, *grid])
    printed = capsys.readouterr()
    assert "6 samples of Burgers-v0 at 8x8" in printed.out and "residual floor, consistent" in printed.out
    assert "warning" not in printed.err
    assert torch.equal(FieldFile(tmp_path / "out.h5", burgers).read(range(N)), truth(burgers))
    data.main(["--validate", str(tmp_path / "out.h5"), str(tmp_path / "out.h5")])
    assert capsys.readouterr().out.count("valid; 6 samples") == 2


def test_the_command_warns_of_wrong_units(tmp_path, pdebench, capsys):
    flags = ["--import-pdebench", str(pdebench), "--channel", "u=tensor", "--axes", "sample,t,x", "--scale", "u=10"]
    grid = ["--stride", "t=2", "x=4", "--origin", f"x={0.5 / 32}"]
    data.main(["--resolution", "8", "--out", str(tmp_path / "out.h5"), *flags, *grid])
    error = capsys.readouterr().err
    assert "warning: the consistent residual of the imported fields is" in error and "check units" in error


def test_the_command_imports_a_directory_of_npy_files(tmp_path, double, fields):
    merged(tmp_path / "all", fields)
    where = [f"{name}={tmp_path / 'all'}" for name in "au"]
    flags = ["--import-npy", "--channel", *where, "--axes", "x,y,channel", "--index", "a.channel=0", "u.channel=1"]
    units = ["--scale", "a=5", f"u={1 / 115}", "--offset", "a=7.5", f"u={0.9 / 115}"]
    grid = ["--extent", "x=1", "y=1", "--layout", "x=vertex", "y=vertex"]
    data.main(["--env", "Double-v0", "--resolution", "8", "--out", str(tmp_path / "out.h5"), *flags, *units, *grid])
    read = FieldFile(tmp_path / "out.h5", double).read(range(N))
    torch.testing.assert_close(read, fields, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--import-npy"], "--channel must say where every channel"),
        (["--channel", "u=x"], "one of --import-pdebench, --import-npy and --description"),
        (["--import-npy", "--channel", "u"], "--channel must be NAME=VALUE, got 'u'"),
        (["--import-npy", "--channel", "u=a", "u=b"], "--channel: 'u' is given twice"),
        (["--import-npy", "--channel", "u=a"], "--axes must name the axes of channel 'u'"),
        (["--import-npy", "--channel", "u=a", "--axes", "v=t,x"], "--axes: unknown channel 'v'; --channel names u"),
        (["--import-npy", "--channel", "u=a", "--axes", "t,x", "--index", "time=0"], "no channel has an axis 'time'"),
        (["--import-npy", "--channel", "u=a", "--axes", "t,x", "--scale", "u=big"], "--scale u must be a number, got 'big'"),
        (["--import-npy", "--channel", "u=gone", "--axes", "t,x"], "channel 'u' (gone): no such file"),
        (["--description", "d.toml", "--channel", "u=a"], "leave out --channel"),
        (["--import-npy", "--seed", "3"], "--seed: imported data have none"),
        (["--chunk-size", "-1"], "--chunk-size must be at least 1"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--parameters", "nu", "1"], "unknown parameter 'nu' of Burgers-v0"),
    ],
)
def test_bad_flags_are_answered_by_name_and_make_nothing(tmp_path, flags, message):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        data.main(["--resolution", "8", "--out", str(tmp_path / "out" / "file.h5"), *flags])
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_all_violations_of_all_files_are_listed(tmp_path, burgers, pdebench, capsys):
    good = tmp_path / "good.h5"
    import_fields(good, ImportedFields(burgers, description(pdebench)))
    with pytest.raises(ValueError, match=r"1D_Burgers.*'format' is missing.*gone\.h5: no such file"):
        data.main(["--validate", str(pdebench), str(good), str(tmp_path / "gone.h5")])
    assert "good.h5: valid; 6 samples" in capsys.readouterr().out
