"""The grid of a study: groups, branches, keys, and mistakes in the file."""

from pathlib import Path

import pytest

from ham_dist.config.load import settings_of
from ham_dist.errors import ConfigError
from ham_dist.study.grid import Study, open_study
from ham_dist.study.overrides import merged

BASE = """
name = "tiny"
test = false
seeds = [0, 1]
targets = [{ columns = 4 }, { bytes = 900 }]
base = { model = { name = "dcnv2" }, pretrain = { max_epochs = 3 } }
"""

HAM = """
[[arms]]
label = "ham"
set = { search.method.penalty = 1e-4 }
"""


def grid(folder: Path, text: str, **folders: str) -> Study:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return open_study(path, folders)


def labels(study: Study) -> list[list[str]]:
    return [[branch.label for branch in group.branches] for group in study.groups]


def test_arms_with_the_same_pretraining_share_a_supernet(tmp_path: Path) -> None:
    study = grid(
        tmp_path,
        BASE
        + HAM
        + """
[[arms]]
label = "uniform"
set = { search.method.name = "uniform", retrain.max_epochs = 7 }
[[arms]]
label = "plain"
set = { orthogonality.form = "none" }
targets = [{ columns = 4 }]
""",
    )
    assert (
        labels(study)
        == [
            ["supernet", "ham-columns-4", "ham-bytes-900", "uniform-columns-4", "uniform-bytes-900"],
            ["supernet+plain", "plain-columns-4"],
        ]
        * 2
    )
    assert [group.seed for group in study.groups] == [0, 0, 1, 1]
    assert study.branches == 14
    first, plain, *_ = study.groups
    assert first.settings.retrain.max_epochs == 30, "branches set it, not the group"
    assert (first.settings.orthogonality.form, plain.settings.orthogonality.form) == ("gram", "none")
    uniform = first.branches[3].settings
    assert (uniform.search.method.name, uniform.retrain.max_epochs, uniform.pretrain.max_epochs) == (
        "uniform",
        7,
        3,
    )
    assert [target.columns for target in uniform.search.targets] == [4]


def test_axes_limit_each_other(tmp_path: Path) -> None:
    study = grid(
        tmp_path,
        BASE
        + """
supernet = false
[[data]]
name = "log"
path = "data/log-{seed}"
[[models]]
label = "dcnv2"
[[models]]
label = "fm"
set = { model.name = "fm" }
seeds = [1]
arms = ["more"]
targets = ["all"]
[[arms]]
label = "ham"
[[arms]]
label = "more"
set = { search.method.name = "random" }
seeds = [0, 1, 2]
models = ["dcnv2", "fm"]
""",
    )
    found = [(group.model, group.seed, len(group.branches)) for group in study.groups]
    assert found == [("dcnv2", 0, 4), ("dcnv2", 1, 4), ("fm", 1, 1), ("dcnv2", 2, 2)]
    assert [group.settings.data.path for group in study.groups] == [
        "data/log-0",
        "data/log-1",
        "data/log-1",
        "data/log-2",
    ]
    assert study.groups[2].branches[0].label == "more-all"


def test_folders_can_be_given(tmp_path: Path) -> None:
    text = BASE + HAM + '[[data]]\nname = "log"\npath = "data/log"\n'
    study = grid(tmp_path, text, log="elsewhere-{seed}")
    assert [group.settings.data.path for group in study.groups] == ["elsewhere-0", "elsewhere-1"]
    assert [group.label for group in study.groups] == [group.label for group in grid(tmp_path, text).groups]
    with pytest.raises(
        ConfigError, match=r"--data other=x: the study has no data of that name\. It has: log"
    ):
        grid(tmp_path, text, other="x")


def test_a_grid_makes_an_arm_of_each_combination(tmp_path: Path) -> None:
    study = grid(
        tmp_path,
        BASE.replace("seeds = [0, 1]", "seeds = [0]")
        + """
[[models]]
label = "dcnv2"
arms = ["ham"]
[[arms]]
label = "ham"
grid = { search.method.penalty = [1e-5, 5e-5], retrain.patience = [2, 3] }
targets = [{ columns = 4 }]
""",
    )
    assert labels(study)[0][1:] == [
        "ham,penalty=1e-05,patience=2-columns-4",
        "ham,penalty=1e-05,patience=3-columns-4",
        "ham,penalty=5e-05,patience=2-columns-4",
        "ham,penalty=5e-05,patience=3-columns-4",
    ]


def test_a_key_covers_what_changes_results(tmp_path: Path) -> None:
    def key(text: str, data: str | None = "d") -> str:
        return grid(tmp_path, text).groups[0].branches[1].key(data)

    plain = BASE + HAM
    changed = [
        plain.replace("max_epochs = 3", "max_epochs = 4"),
        plain.replace("1e-4", "2e-4"),
        plain.replace("columns = 4", "columns = 5"),
        plain.replace("seeds = [0, 1]", "seeds = [1]"),
        plain.replace('{ name = "dcnv2" }', '{ name = "fm" }'),
    ]
    assert len({key(text) for text in [plain, *changed]}) == 6
    assert key(plain) != key(plain, "other data")
    same = [
        plain.replace('"tiny"', '"another name"'.replace(" ", "-")),
        plain.replace('label = "ham"', 'label = "other"'),
        plain.replace("max_epochs = 3 }", "max_epochs = 3 }, checkpoint = { keep = 5 }"),
        plain.replace("1e-4 }", "1e-4, search.epochs = 10 }"),  # the default
    ]
    assert {key(text) for text in same} == {key(plain)}


def test_the_supernet_and_all_columns_have_keys_of_their_own(tmp_path: Path) -> None:
    study = grid(tmp_path, BASE + HAM + 'targets = ["all", { columns = 1 }]\n')
    keys = [branch.key("d") for branch in study.groups[0].branches]
    assert len(set(keys)) == 3


def test_another_method_replaces_the_options_of_the_one_below() -> None:
    below = {"search": {"method": {"name": "ham", "penalty": 1e-4}, "epochs": 3}, "model": {"base_dim": 8}}
    assert merged(below, {"search": {"method": {"name": "random"}}})["search"] == {
        "method": {"name": "random"},
        "epochs": 3,
    }
    assert merged(below, {"search": {"method": "ham"}})["search"]["method"] == {
        "name": "ham",
        "penalty": 1e-4,
    }
    assert merged(below, {"search": {"method": {"alpha_every": 2}}})["search"]["method"] == {
        "name": "ham",
        "penalty": 1e-4,
        "alpha_every": 2,
    }
    assert merged(below, {"model": {"name": "fm"}})["model"] == {"name": "fm"}


def test_base_is_found_next_to_the_study(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[data]\npath = "data/log"\n[pretrain]\nmax_epochs = 5\n')
    study = grid(tmp_path, 'name = "s"\ntest = true\nbase = "run.toml"\n' + HAM)
    (group,) = study.groups
    assert (group.data, group.settings.pretrain.max_epochs) == ("log", 5)
    assert group.branches[1].settings.search.targets == settings_of({}, None).search.targets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE, r"study.toml: arms: is missing; set it.\n  Arms of the comparison."),
        (BASE.replace("test = false\n", "") + HAM, r"study.toml: test: is missing; set it.\n  True if"),
        (BASE.replace("false", "1") + HAM, r"study.toml: test = 1: must be a valid boolean\n  True if"),
        (BASE + "wrong = 1\n" + HAM, r"study.toml: wrong: no such key. A study has: name, base"),
        (BASE + HAM + "sed = [1]\n", r"study.toml: arms\[0\].sed: no such key. arms\[0\] has: label, set"),
        (BASE + HAM.replace('"ham"', '"a/b"'), r"arms\[0\].label = \"a/b\": String must match|should match"),
        (BASE.replace("columns = 4", "columns = 0") + HAM, r"targets\[0\].columns = 0: must be greater"),
        (BASE + HAM + HAM, r"study.toml: arms: 'ham' occurs twice"),
        (BASE + HAM.replace('"ham"', '"supernet"'), r"'supernet' is the label of the pretrained models"),
        (BASE + HAM + 'models = ["fm"]\n', r"arms 'ham': models has 'fm', which is none of none given"),
        (BASE + HAM.replace("penalty", "penalti"), r"study.toml: arms 'ham': search.method.penalti: no such"),
        (
            BASE.replace("max_epochs = 3", "max_epochs = 0") + HAM,
            r"study.toml: base: pretrain.max_epochs = 0",
        ),
        (
            BASE + HAM.replace("search.method.penalty = 1e-4", "seed = 3"),
            r"arms 'ham': seed cannot be set here",
        ),
        (
            BASE + '[[arms]]\nlabel = "ham"\ngrid = { search.epochs = 3 }\n',
            r"arms 'ham': grid.search.epochs: must be a list of values",
        ),
        (BASE + HAM + "seeds = [5]\n[[models]]\nlabel = 'a'\nseeds = [6]\n", r"no branch is left"),
        (
            BASE + HAM + "targets = [{ columns = 3 }, { columns = 3 }]\n",
            r"arms 'ham': the target .* occurs twice",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(tmp_path, text)


def test_all_mistakes_come_together(tmp_path: Path) -> None:
    text = (
        BASE
        + HAM.replace("penalty = 1e-4", "penalty = -1.0")
        + HAM.replace('"ham"', '"b"').replace("search.method.penalty", "search.epoch")
    )
    with pytest.raises(ConfigError) as caught:
        grid(tmp_path, text)
    assert str(caught.value).count("arms 'ham': search.method.penalty = -1.0") == 1
    assert str(caught.value).count("arms 'b': search.epoch: no such key") == 1


STUDIES = sorted((Path(__file__).parents[2] / "launch" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_studies_of_the_repository_can_be_opened(path: Path) -> None:
    study = open_study(path)
    assert study.settings.name == path.stem
    assert study.branches > 0


def test_generated_data_has_the_seed_of_its_run(tmp_path: Path) -> None:
    generated = '[[data]]\nname = "generated"\nby_seed = true\n'
    groups = grid(tmp_path, BASE + generated + HAM).groups
    assert [(group.seed, group.settings.data.synthetic.seed) for group in groups] == [(0, 0), (1, 1)]
    assert len({branch.key(None) for group in groups for branch in group.branches}) == 2 * 3
    with pytest.raises(ConfigError, match="data 'generated': by_seed is for generated data, without a path"):
        grid(tmp_path, BASE + generated + 'path = "data/ml"\n' + HAM)
