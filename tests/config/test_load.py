import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ham_dist.config.load import differences, dump_run, load_run, load_saved_run
from ham_dist.config.schema import (
    DataSettings,
    OptimizerSettings,
    OrthogonalitySettings,
    RunSettings,
    SearchSettings,
)
from ham_dist.config.sharding import ShardingSettings
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.config.target import Target
from ham_dist.errors import ConfigError
from ham_dist.methods.ham import HamSettings
from ham_dist.methods.uniform import UniformSettings
from ham_dist.models.autoint import AutoIntSettings
from ham_dist.models.dcnv2 import DCNV2Settings
from ham_dist.models.deepfm import DeepFMSettings
from ham_dist.models.fm import FMSettings

positive = st.integers(1, 2**63 - 1)
positive_floats = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
targets = st.one_of(st.builds(Target, columns=positive), st.builds(Target, bytes=positive))
entries = st.lists(st.tuples(st.integers(0, 64), st.integers(2, 10**6)), max_size=5)


def _synthetic(fields: list[tuple[int, int]], **values: Any) -> SyntheticSettings:
    return SyntheticSettings(
        planted_ranks=tuple(ranks for ranks, _ in fields),
        num_embeddings=tuple(rows for _, rows in fields),
        **values,
    )


layer_widths = st.lists(st.integers(1, 65_536), max_size=64).map(tuple)
runs = st.builds(
    RunSettings,
    seed=st.integers(0, 2**63 - 1),
    data=st.builds(
        DataSettings,
        path=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        synthetic=st.builds(_synthetic, entries, skew=st.floats(0, 5), signal=positive_floats),
    ),
    model=st.one_of(
        st.builds(FMSettings, lift_dim=st.integers(1, 4096), init_std=positive_floats),
        st.builds(DeepFMSettings, mlp=layer_widths),
        st.builds(AutoIntSettings, attention_layers=st.integers(1, 64)),
        st.builds(DCNV2Settings, mlp=layer_widths, cross_layers=st.integers(1, 64)),
    ),
    optimizer=st.builds(OptimizerSettings, tables=st.just("adam"), learning_rate=positive_floats),
    sharding=st.builds(
        ShardingSettings,
        sharding_type=st.sampled_from(["auto", "row_wise", "grid"]),
        sharding_types=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            st.sampled_from(["table_wise", "data_parallel"]),
            max_size=3,
        ),
    ),
    orthogonality=st.builds(
        OrthogonalitySettings, form=st.sampled_from(["gram", "cosine", "none"]), weight=positive_floats
    ),
    search=st.builds(
        SearchSettings,
        targets=st.lists(targets, min_size=1, max_size=4).map(tuple),
        method=st.builds(HamSettings, penalty=positive_floats) | st.builds(UniformSettings),
    ),
)


def _toml(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _mistakes(path: str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=runs)
def test_load_of_dump_is_the_same(tmp_path: Path, run: RunSettings) -> None:
    assert load_run(_toml(tmp_path, dump_run(run))) == run


def test_dump_names_every_key_with_its_description() -> None:
    text = dump_run(RunSettings())
    description = "Maximum number of epochs of alternating steps on alpha and on the weights."
    assert f"# {description}\nepochs = 10\n" in text
    assert "[data.synthetic]" in text
    assert "path" not in text


def test_without_a_file_all_settings_are_defaults() -> None:
    assert load_run(None) == RunSettings()


def test_overrides_are_toml_or_a_bare_word_and_later_ones_win(tmp_path: Path) -> None:
    path = _toml(tmp_path, "seed = 1\n[search]\nepochs = 3\n")
    run = load_run(
        path,
        [
            "data.path=2025-12-31",
            "search.targets=[{columns = 14}, {bytes = 99}]",
            "seed=5",
            "model.mlp=[8]",
            "seed = 6",
        ],
    )
    assert run.seed == 6
    assert run.data.path == "2025-12-31"
    assert run.search.targets == (Target(columns=14), Target(bytes=99))
    assert run.search.epochs == 3
    assert run.model == DCNV2Settings(mlp=(8,))


def test_a_wrong_choice_is_one_line_with_all_choices(tmp_path: Path) -> None:
    kind, *_ = _mistakes(None, "sharding.sharding_type=rowwise").splitlines()
    assert kind.startswith("--set: sharding.sharding_type = \"rowwise\": must be 'auto', 'table_wise', ")
    assert kind.endswith("Did you mean row_wise?")
    assert "'device'" in _mistakes(None, "sharding.compute_kernel=devise").splitlines()[0]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    path = _toml(
        tmp_path,
        """
        sed = 3
        [model]
        name = "dcn2"
        learning_rate = 1
        [search]
        epochs = 0
        targets = [{columns = 14}, {}]
        [no_such]
        key = 1
        """,
    )
    lines = _mistakes(path, "data.batch_size=many", "data", "seed.deep=1", "seed.deeper=2").splitlines()
    assert lines == [
        f"{'--set data'}: expected key=value, such as --set search.epochs=5",
        '--set: seed = {"deep": 1, "deeper": 2}: must be a whole number',
        "  Seed of the weights, of the order of samples, and of methods that choose at random.",
        '--set: data.batch_size = "many": must be a whole number',
        "  Samples in a global training batch, divided among all ranks (HAM paper, section 4.3).",
        f"{path}: model.name = \"dcn2\": must be 'fm', 'deepfm', 'autoint' or 'dcnv2'. Did you mean dcnv2?",
        "  Model: `fm`, `deepfm`, `autoint` or `dcnv2`.",
        f"{path}: model.learning_rate: no such key. Did you mean optimizer.learning_rate?",
        f"{path}: search.targets[1]: give a target either `columns`, `bytes` or `ladder`",
        f"{path}: search.epochs = 0: must be greater than 0",
        "  Maximum number of epochs of alternating steps on alpha and on the weights.",
        f"{path}: sed: no such key. Did you mean seed?",
        f"{path}: no_such: no such key. A run has: {', '.join(RunSettings.model_fields)}.",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed = \n", "is not TOML: Invalid value (at line 1, column 8)"),
        ('seed = "3"\n', 'seed = "3": must be a whole number'),
        ("seed = true\n", "seed = true: must be a whole number"),
        ("model = 3\n", "model = 3: must be a section with keys of its own"),
        ("[optimizer]\nlearning_rate = nan\n", "optimizer.learning_rate = NaN: must be a finite number"),
        (
            "[search]\ntargets = []\n",
            "search.targets = []: must have at least 1 entry, such as [{columns = 16}]\n",
        ),
        ("[search]\ntargets = 12\n", "search.targets = 12: must be a list, such as [{columns = 12}]\n"),
        (
            "[search]\ntargets = {bytes = 9}\n",
            'search.targets = {"bytes": 9}: must be a list, such as [{bytes = 9}]\n',
        ),
        (
            "[search]\ntargets = [12]\n",
            "search.targets[0] = 12: must be a section with keys of its own, such as {columns = 12}\n",
        ),
        ("[model]\nmlp = 16\n", "model.mlp = 16: must be a list, such as [16, 16]\n"),
        ("[data]\npath = 16\n", "data.path = 16: must be a string\n"),
        (
            '[model]\nname = "autoint"\nattention_heads = 3\n',
            "model: attention_heads = 3 does not divide lift_dim = 16",
        ),
    ],
)
def test_mistake_names_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = _toml(tmp_path, text)
    assert _mistakes(path).startswith(f"{path}: {complaint}")


def test_override_of_a_list_entry_must_set_the_whole_list(tmp_path: Path) -> None:
    path = _toml(tmp_path, "[search]\ntargets = [{columns = 3}]\n")
    assert _mistakes(path, "search.targets.0.columns=4").startswith(
        "--set search.targets.0.columns: search.targets is not a section. Set its whole value"
    )


def test_mistake_of_several_keys_names_where_they_come_from(tmp_path: Path) -> None:
    assert _mistakes(None, "optimizer.tables=rowwise_adagrad").startswith("--set: orthogonality.application")
    path = _toml(tmp_path, "[optimizer]\ntables = 'rowwise_adagrad'\n")
    assert _mistakes(path).startswith(f"{path}: orthogonality.application")
    assert _mistakes(path, "seed=1").startswith(f"{path} with --set: orthogonality.application")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    assert (
        _mistakes(str(tmp_path / "none.toml"))
        == f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    )
    assert _mistakes(str(tmp_path)) == f"{tmp_path}: cannot be read: is a folder, not a regular file"


def test_differences_name_the_keys() -> None:
    other = load_run(None, ["search.epochs=12", "data.path=a"])
    assert differences(RunSettings(), other) == ['data.path: nothing, not "a"', "search.epochs: 10, not 12"]


@pytest.mark.parametrize(
    "setting",
    [
        "model.cross_layers=10000000",
        f"model.mlp={[16] * 65}",
        "model.mlp=[65537]",
        "model.attention_layers=65",
        "model.lift_dim=4097",
        "data.synthetic.rows=1000000000001",
        "model.base_dim=1e400",
        "seed=" + "1" * 5000,
        "seed=" + "[" * 10_000,
        "seed=nan",
    ],
)
def test_a_setting_that_no_machine_can_support_is_an_error(setting: str) -> None:
    model = "autoint" if "attention" in setting or "lift" in setting else "dcnv2"
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}(?!.*no such key)"):
        load_run(None, [f"model.name={model}", setting])


@pytest.mark.parametrize(
    "content", [b"\xff", b"seed = " + b"1" * 5000, b"a = " + b"[" * 100_000, b"\0", b"#" * (1 << 21)]
)
def test_a_hostile_file_of_settings_is_a_mistake(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml: "):
        load_run(str(path))


def test_a_fifo_of_settings_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    with pytest.raises(ConfigError, match="is a FIFO, not a regular file"):
        load_run(str(tmp_path / "run.toml"))


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            ["search.push=1e-3"],
            r"search.push: no such key. It is called search.method.penalty; .*\[search.method\]",
        ),
        (["search.alpha_every=2"], r"It is called search.method.alpha_every"),
        (["model.name=fm", "model.cross_layers=3"], r"cross_layers: .* belongs to model.name = 'dcnv2'"),
        (["model.lift_dim=4"], r"belongs to model.name = 'fm' or 'deepfm' or 'autoint'"),
        (["search.method=uniform", "search.method.penalty=1.0"], r"belongs to search.method.name = 'ham'"),
        (["search.method.penlty=1.0"], r"Did you mean search.method.penalty\?"),
        (["model.cros_layers=1"], r"Did you mean model.cross_layers\?"),
        (["search.method=hma"], r"search.method = \"hma\": must be .*Did you mean ham\?"),
        (["model.name=dcn"], r"model.name = \"dcn\": must be .*Did you mean dcnv2\?"),
    ],
)
def test_keys_of_a_method_or_a_model_are_looked_up_in_its_own_settings(
    overrides: list[str], wanted: str
) -> None:
    assert re.search(wanted, _mistakes(None, *overrides))


def test_a_method_is_named_alone_or_in_a_section_of_its_own(tmp_path: Path) -> None:
    path = _toml(tmp_path, '[search]\nmethod = "ham"\n')
    assert load_run(path) == load_run(None)
    assert load_run(path, ["search.method.penalty=0.5"]).search.method == HamSettings(penalty=0.5)
    section = _toml(tmp_path, '[search.method]\nname = "ham"\npenalty = 0.25\n')
    assert load_run(section).search.method == HamSettings(penalty=0.25)
    assert load_run(section, ["search.method=uniform"]).search.method == UniformSettings()


def test_a_run_folders_settings_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    old = """
        [model]
        name = "fm"
        base_width = 8
        lift_width = 8
        table_start = 0.5
        first_order = "table"
        mlp = [4]
        cross_layers = 2
        attention_layers = 1
        attention_heads = 1
        [search]
        method = "{method}"
        epochs = 3
        alpha_start = 0.5
        push = 0.25
        [sharding]
        kind = "row_wise"
        tables = {{ user = "table_wise" }}
        memory = "host"
        memories = {{ user = "cached" }}
        cache_share = 0.5
        [ranks]
        ids_ahead = false
        [data.synthetic]
        cardinalities = [3]
        planted_ranks = [1]
    """
    for method, own in (
        ("ham", HamSettings(alpha_init=0.5, penalty=0.25)),
        ("uniform", UniformSettings()),
    ):
        path = Path(_toml(tmp_path, old.format(method=method)))
        run = load_saved_run(path)
        assert run.model == FMSettings(base_dim=8, lift_dim=8, init_std=0.5, first_order="table")
        assert run.sharding == ShardingSettings(
            sharding_type="row_wise",
            sharding_types={"user": "table_wise"},
            compute_kernel="fused_uvm",
            compute_kernels={"user": "fused_uvm_caching"},
            cache_load_factor=0.5,
        )
        assert not run.ranks.prefetch_ids
        assert run.data.synthetic.num_embeddings == (3,)
        assert run.search == SearchSettings(method=own, epochs=3)
        assert "search.push: no such key. It is called search.method.penalty" in _mistakes(str(path))
        assert load_saved_run(Path(_toml(tmp_path, dump_run(run)))) == run


def test_a_preset_sets_its_keys_where_the_file_does_not(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[search]\npreset = "best"\n[retrain]\ncolumn_dropout = 0.1\n')
    best = load_run(str(file))
    assert (best.orthogonality.form, best.optimizer.tables_weight_decay) == ("none", 1e-4)
    assert (best.retrain.column_dropout, best.retrain.column_dropout_epochs) == (0.1, 10), (
        "the file's, and its"
    )
    saved = tmp_path / "saved.toml"
    saved.write_text(dump_run(best))
    assert load_run(str(saved)) == best
    paper = load_run(str(saved), ["search.preset=paper"])
    assert paper == load_run(None), "the command line replaces the file's values"
    both = load_run(None, ["search.preset=best", "retrain.column_dropout=0.2"])
    assert (both.retrain.column_dropout, both.orthogonality.form) == (0.2, "none"), "later ones win"


def test_the_preset_of_the_paper_is_the_default() -> None:
    assert load_run(None, ["search.preset=paper"]) == load_run(None)


@pytest.mark.parametrize("value", ["fast", "3", "[1]"])
def test_an_unknown_preset_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.preset = .*(paper|best)"):
        load_run(None, [f"search.preset={value}"])
