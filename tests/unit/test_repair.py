"""Every kind of damage is found, named, and mended to the bytes that were there; nothing else is touched."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from data_gen.__main__ import app
from data_gen.generate import generate
from data_gen.repair import check, repair
from icrl.config import (
    Config,
    ContextComponent,
    DatasetConfig,
    LinearBanditConfig,
    LinUCBConfig,
    TabularMDPConfig,
    TrainConfig,
    UniformConfig,
    override,
)
from icrl.files import locked
from icrl.store import SplitReader, dataset_path, dataset_recipe, recipe_config

BANDIT = Config(
    environment=LinearBanditConfig(dim=2, n_actions=3, horizon=10),
    context=(ContextComponent(LinUCBConfig(), 0.7), ContextComponent(UniformConfig(), 0.3)),
    dataset=DatasetConfig(train=2100, validation=300, test=0, materialise=("means",), actors=0),
    train=TrainConfig(global_batch=8),
)
MDP = Config(
    environment=TabularMDPConfig(n_states=3, n_actions=2, episode_length=4, episodes=3),
    context=(ContextComponent(UniformConfig()),),
    dataset=DatasetConfig(train=600, validation=300, test=10, actors=0),
    train=TrainConfig(global_batch=8),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    for name, config in (("bandit", BANDIT), ("mdp", MDP)):
        generate(override(config, [f"dataset.path={root / name}"]))
    return root


@pytest.fixture
def dataset(made, tmp_path):
    return shutil.copytree(made / "bandit", tmp_path / "set")


def files(dataset):
    """All bytes, and when each file was written."""
    found = [path for path in sorted(dataset.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(dataset)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def values(found):
    return {name: data for name, (data, _) in found.items()}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def command(*arguments, code):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


CHUNK = 256 * 10 * 4
"""Bytes of an inner chunk of `reward`."""
DAMAGE = {
    "a flipped byte": ("train.zarr/reward/c.3.0", lambda p: flip(p, 1000), "chunk 3 has crc32c [0-9a-f]{8}, expected"),
    "a flipped sum": (
        "train.zarr/reward/c.3.0",
        lambda p: flip(p, CHUNK + 1),
        "chunk 3 has crc32c [0-9a-f]{8}, expected",
    ),
    "a flipped index": ("train.zarr/reward/c.3.0", lambda p: flip(p, CHUNK + 7), "has a damaged index"),
    "a truncated shard": ("train.zarr/action/c.8.0", lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, expected"),
    "an empty shard": ("validation.zarr/source/c.1", lambda p: p.write_bytes(b""), "has 0 bytes, expected"),
    "a shard that is gone": ("train.zarr/means/c.0.0", lambda p: p.unlink(), "file is gone"),
    "a deleted record": ("_commits/train/4.json", lambda p: p.unlink(), "shard is not committed"),
    "a torn record": ("_commits/train/4.json", lambda p: p.write_bytes(p.read_bytes()[:50]), "not valid JSON"),
    "another record": ("_commits/train/4.json", lambda p: p.write_bytes(b"[]"), "is not a commit record"),
    "a record of another shard": (
        "_commits/train/4.json",
        lambda p: p.write_bytes(p.with_name("5.json").read_bytes()),
        "is not the record of 256 rows of shard 4",
    ),
    "a wrong sum in a record": (
        "_commits/train/4.json",
        lambda p: edit(p, arrays=json.loads(p.with_name("5.json").read_text())["arrays"]),
        r"does not agree with .*c\.4.*, whose chunks are whole",
    ),
    "no sum in a record": (
        "_commits/train/4.json",
        lambda p: p.write_text(p.read_text().replace('"crc32c"', '"crc32"')),
        "is not a commit record .KeyError",
    ),
    "a torn recipe": ("recipe.json", lambda p: p.write_bytes(p.read_bytes()[:50]), "is not valid JSON"),
    "an edited recipe": ("recipe.json", lambda p: edit(p, seed=1), "found -> expected.: seed: 1 -> 0"),
    "no recipe": ("recipe.json", lambda p: p.unlink(), "file is gone"),
    "torn metadata of an array": ("train.zarr/reward/zarr.json", lambda p: p.write_text("{"), "is not valid JSON"),
    "another shape": ("train.zarr/reward/zarr.json", lambda p: edit(p, shape=[9, 9]), r"shape\[0\]: 9 -> 2100"),
    "no metadata of an array": ("train.zarr/reward/zarr.json", lambda p: p.unlink(), "file is gone"),
    "torn metadata of a split": ("test.zarr/zarr.json", lambda p: p.write_text(""), "is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_mended_and_nothing_else_is_touched(dataset, damage):
    name, harm, problem = DAMAGE[damage]
    before = files(dataset)
    harm(dataset / name)
    assert values(files(dataset)) != values(before)
    faults = check(dataset, sample=1).faults
    assert {fault.path for fault in faults} == {dataset / name}
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError("; ".join(map(str, faults)))
    done = repair(dataset, sample=1)
    assert done.found.faults == faults
    after = files(dataset)
    assert values(after) == values(before)
    shard = {"3": "train", "8": "train", "1": "validation", "0": "train", "4": "train"}
    changed = {path for path in after if after[path] != before[path]}
    if done.shards:
        (task,) = done.shards
        assert task.split == shard[str(task.shard)]
        own = {path for path in after if path.startswith(f"{task.split}.zarr/") and f"/c.{task.shard}" in path}
        assert changed == own | {f"_commits/{task.split}/{task.shard}.json"}
        assert done.mended == ()
    else:
        assert changed == {name}
        assert done.mended == (dataset / name,)
    assert check(dataset).faults == ()


def test_a_shard_of_another_place_is_found_though_its_own_sums_hold(dataset):
    before = values(files(dataset))
    shutil.copy(dataset / "train.zarr" / "reward" / "c.5.0", dataset / "train.zarr" / "reward" / "c.4.0")
    (fault,) = check(dataset, sample=0).faults
    assert fault.path == dataset / "_commits" / "train" / "4.json"
    assert "reward/c.4.0, whose chunks are whole: one of the two is not of this shard" in str(fault)
    repair(dataset, sample=0)
    assert values(files(dataset)) == before


def test_all_metadata_but_one_copy_of_the_recipe_may_be_lost(dataset):
    before = values(files(dataset))
    for path in [dataset / "recipe.json", dataset / "README.md", *dataset.glob("*.zarr/*/zarr.json")]:
        path.unlink()
    for split in ("train", "test"):
        (dataset / f"{split}.zarr" / "zarr.json").write_text("?")
    shutil.rmtree(dataset / "_commits" / "validation")
    shutil.rmtree(dataset / "train.zarr" / "source")
    assert len(check(dataset).faults) == 1 + 3 * 5 + 2 + 2 + 9
    repair(dataset)
    assert values(files(dataset)) == before


def test_where_no_copy_of_the_recipe_is_left_nothing_is_guessed(dataset):
    for path in (dataset / "recipe.json", *dataset.glob("*.zarr/zarr.json")):
        path.write_text("?")
    before = files(dataset)
    with pytest.raises(ValueError, match=r"recipe\.json is damaged, and no split holds a sound copy"):
        repair(dataset)
    assert files(dataset) == before


def test_copies_that_disagree_are_outvoted_or_refused(made, dataset, tmp_path):
    before = values(files(dataset))
    other = override(BANDIT, [f"dataset.path={tmp_path / 'other'}", "dataset.seed=5"])
    generate(other)
    for name in ("train.zarr/zarr.json", "recipe.json"):
        shutil.copy(tmp_path / "other" / name, dataset / name)
    assert {fault.path for fault in check(dataset).faults} == {
        dataset / "recipe.json",
        dataset / "train.zarr" / "zarr.json",
    }
    repair(dataset)
    assert values(files(dataset)) == before
    shutil.copy(tmp_path / "other" / "train.zarr" / "zarr.json", dataset / "train.zarr" / "zarr.json")
    for name in ("recipe.json", "validation.zarr/zarr.json"):
        (dataset / name).unlink()
    with pytest.raises(ValueError, match=r"its splits hold different recipes, and recipe\.json is none of them"):
        repair(dataset)


def test_provenance_is_kept_where_one_split_has_it_and_admitted_lost_where_none_has(dataset):
    groups = sorted(dataset.glob("*.zarr/zarr.json"))
    kept = json.loads(groups[0].read_text())["attributes"]["provenance"]
    for path in groups[1:]:
        path.unlink()
    repair(dataset)
    assert [json.loads(path.read_text())["attributes"]["provenance"] for path in groups] == [kept] * 3
    for path in groups:
        path.unlink()
    repair(dataset)
    assert "lost" in json.loads(groups[0].read_text())["attributes"]["provenance"]


def test_values_that_are_not_those_of_the_generator_are_found_though_all_sums_hold(made, dataset, tmp_path):
    other = override(BANDIT, [f"dataset.path={tmp_path / 'other'}", "dataset.seed=5"])
    generate(other)
    for name in ("action", "reward", "optimal_action", "source", "means"):
        (path,) = (dataset / "train.zarr" / name).glob("c.2*")
        shutil.copy(tmp_path / "other" / path.relative_to(dataset), path)
    shutil.copy(tmp_path / "other" / "_commits" / "train" / "2.json", dataset / "_commits" / "train" / "2.json")
    assert check(dataset, sample=0).faults == ()
    faults = check(dataset, sample=None).faults
    assert {(fault.split, fault.shard) for fault in faults} == {("train", 2)}
    assert "chunk 2 differs from its regeneration (first at trajectory 512)" in str(faults[0])
    repair(dataset, sample=None)
    assert values(files(dataset)) == values(files(made / "bandit"))


def test_the_reader_refuses_what_is_damaged_and_says_how_to_repair_it(dataset):
    remedy = f"`python -m data_gen repair {dataset}`"
    path = dataset / "train.zarr" / "reward" / "c.3.0"
    flip(path, 1000)
    reader = SplitReader(dataset, "train")
    reader.chunk(2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"c\.3\.0: chunk 3 has crc32c [0-9a-f]{8}, expected") as caught:
            reader.rows(slice(700, 800))
        assert str(path) in str(caught.value)
        assert remedy in str(caught.value)
    assert len(SplitReader(dataset, "train", check_sums=False).chunk(3)["reward"]) == 256
    flip(path, 1000)
    assert len(reader.chunk(3)["reward"]) == 256
    flip(path, CHUNK + 5)
    with pytest.raises(ValueError, match=r"c\.3\.0 has a damaged index; .*repair"):
        SplitReader(dataset, "train").chunk(3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"the first is 3: {path} has \d+ bytes, expected \d+"):
        SplitReader(dataset, "train")
    edit(dataset / "validation.zarr" / "reward" / "zarr.json", shape=[9, 10])
    with pytest.raises(ValueError, match=f"on 2 grids.*{remedy}"):
        SplitReader(dataset, "validation")
    (dataset / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match=rf"recipe\.json is not valid JSON.*{remedy}"):
        SplitReader(dataset, "test")


def test_every_byte_of_a_shard_is_under_a_sum(dataset):
    path = dataset / "validation.zarr" / "source" / "c.1"
    for at in range(path.stat().st_size):
        flip(path, at)
        with pytest.raises(ValueError, match="repair"):
            SplitReader(dataset, "validation").chunk(1)
        flip(path, at)


def test_the_commands_say_what_they_found_and_did(dataset):
    assert "sound           11 shards" in command("verify", dataset, code=0)
    assert "nothing to repair" in command("repair", dataset, code=0)
    path = dataset / "train.zarr" / "reward" / "c.3.0"
    flip(path, 1000)
    (dataset / "_commits" / "validation" / "1.json").unlink()
    (dataset / "train.zarr" / "action" / ".c.3.0.1-ab.partial").write_bytes(b"torn")
    shown = command("verify", dataset, "--sample", 1, code=1)
    assert f"damaged         {path}: chunk 3 has crc32c" in shown
    assert f"missing         {dataset}/_commits/validation/1.json: shard is not committed" in shown
    assert "left over       1 partial files" in shown
    assert f"next: python -m data_gen repair {dataset}" in shown
    done = command("repair", dataset, code=0)
    assert f"damaged         {path}" in done
    assert "written again   train shard 3: trajectories 768 to 1,023" in done
    assert "written again   validation shard 1: trajectories 256 to 299" in done
    assert "removed         1 partial files" in done
    command("verify", dataset, "--full", code=0)


def test_what_cannot_be_checked_is_refused_with_the_reason(made, dataset, tmp_path):
    for name in ("verify", "repair", "inspect"):
        assert "holds no dataset" in command(name, tmp_path / "nowhere", code=2)
    assert "STORE = s3://b/x: expected s3://bucket/prefix" in command("verify", "s3://b/x", code=2)
    assert "--actors x: expected a number, or auto" in command("repair", dataset, "--actors", "x", code=2)
    for path in (dataset / "recipe.json", *dataset.glob("*.zarr/zarr.json")):
        text = path.read_text()
        path.write_text(text.replace("philox4x32-10/box-muller-1", "philox-0"))
    for path in dataset.glob("*.zarr/zarr.json"):
        path.unlink()
    for name in ("verify", "repair"):
        shown = command(name, dataset, code=2)
        assert "rng_version: philox-0 -> philox4x32-10/box-muller-1" in shown


def test_a_dataset_in_use_is_not_repaired(dataset):
    with locked(dataset / ".lock"):
        assert "in use by process" in command("repair", dataset, code=1)
        command("verify", dataset, code=0)


@pytest.mark.parametrize("name", ["bandit", "mdp"])
def test_the_recipe_alone_is_enough(made, name):
    dataset = made / name
    recipe = SplitReader(dataset, "train").recipe
    config = recipe_config(dataset, recipe)
    assert dataset_path(config) == dataset
    assert dataset_recipe(config) == recipe
    found = check(dataset, sample=None)
    assert (found.faults, found.chunks_regenerated) == ((), {"bandit": 9 + 2, "mdp": 3 + 2 + 1}[name])


def test_a_config_is_generated_as_ever_with_options_in_any_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("dataset: {train: 300, validation: 1, test: 0, actors: 0}\nname: a\n")
    for arguments in (["a.yaml", "--dry-run"], ["--dry-run", "a.yaml"], ["generate", "a.yaml", "--dry-run"]):
        assert "missing         301 in 3 shards" in command(*arguments, "dataset.seed=1", code=0)
    assert "seed: 7" in command("--print-config", "a.yaml", "--dataset.seed=7", code=0)
    assert "next: python -m train a.yaml" in command("a.yaml", code=0)
    assert "CONFIG = 'absent.yaml'" in command("absent.yaml", code=2)
    shown = command("--help", code=0)
    for name in ("generate", "verify", "repair", "inspect", "CONFIG [key=value]..."):
        assert name in shown
