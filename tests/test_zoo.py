"""The zoo: its pages and metafiles against the configs, and the package against what `mim` looks for."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from modelindex.load_model_index import load

ROOT = Path(__file__).resolve().parents[1]
LEAVES = {
    str(path.relative_to(ROOT)) for pattern in ('*.py', 'handwritten/*.py') for path in (ROOT / 'configs').glob(pattern)
}


def import_zoo():
    spec = importlib.util.spec_from_file_location('zoo', ROOT / 'tools/dev/zoo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ZOO = import_zoo()


def metafiles():
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / 'configs/zoo').glob('*.yml'))}


@pytest.mark.parametrize('name', ZOO.FAMILIES)
def test_page_and_metafile_are_up_to_date(name):
    """Every figure is counted anew."""
    for path, text in ZOO.expected_files([name]):
        assert path.read_text() == text, 'write it anew with: python tools/dev/zoo.py --write'


def test_every_config_is_in_one_metafile():
    listed = [model['Config'] for content in metafiles().values() for model in content['Models']]
    assert sorted(listed) == sorted(LEAVES)


def test_every_config_says_what_it_is():
    heads = {name: (ROOT / name).read_text().splitlines()[0] for name in LEAVES}
    assert not [name for name, head in heads.items() if not (head.startswith('# ') and head.endswith('.'))]
    assert len(set(heads.values())) == len(heads)


def test_only_measured_results():
    """Only the handwritten models were trained; their figures are those of the README."""
    for name, content in metafiles().items():
        for model in content['Models']:
            assert 'Results' not in model or name == 'handwritten'
    results = [result for model in metafiles()['handwritten']['Models'] for result in model.get('Results', [])]
    assert all(result.keys() == {'Task', 'Dataset', 'Metrics'} for result in results)
    figures = {f'{value / 100:.3f}' for result in results for value in result['Metrics'].values()}
    assert len(figures) == 6
    for page in ('README.md', 'configs/zoo/handwritten.md'):
        text = (ROOT / page).read_text()
        assert not [figure for figure in figures if figure not in text]


def test_figures_of_the_paper_belong_to_configs():
    assert {f'configs/{name}.py' for name in ZOO.PAPER_REPORTS} <= LEAVES


def test_installed_package_carries_the_zoo(tmp_path):
    """What `mim` reads: mmlavit/.mim/model-index.yml, and beside it the files that it names."""
    subprocess.run([sys.executable, 'setup.py', '-q', 'build_py', '-d', tmp_path], cwd=ROOT, check=True)
    mim = tmp_path / 'mmlavit/.mim'
    index = load(str(mim / 'model-index.yml'))
    published = {model.name: model.weights for model in index.models if model.weights}
    names = ('lavit_nano_in275', 'lavit_tiny_in275', 'lavit_vanilla_nano_in275')
    assert published == {name: f'mmlavit://{name}' for name in names}
    assert {model.config for model in index.models if model.name not in published} == LEAVES
    collections = {collection.name: collection for collection in index.collections}
    for model in index.models:
        assert Path(model.config).stem == model.name
        assert (mim / model.config).is_file()
        assert (mim / collections[model.in_collection].readme).is_file()
        assert model.metadata.data['Parameters'] > 1e6
    for tool in ('train.py', 'test.py', 'dist_train.sh', 'analysis_tools/get_flops.py'):
        assert (mim / 'tools' / tool).is_file()
    assert (mim / 'configs/_base_/default_runtime.py').is_file()
    # Where the check of the environment says to install mmcv's ops from.
    assert (mim / 'ops/pyproject.toml').is_file()
    assert (mim / 'ops/mmcv/_ext.py').is_file()


def test_tool_finds_and_rewrites_a_stale_table(tmp_path, monkeypatch, capsys):
    def zoo(*arguments):
        monkeypatch.setattr(sys, 'argv', ['zoo.py', *arguments])
        return ZOO.main()

    original = {name: (ROOT / 'configs/zoo' / name).read_text() for name in ('handwritten.md', 'handwritten.yml')}
    monkeypatch.setattr(ZOO, 'ROOT', tmp_path)
    monkeypatch.setattr(ZOO, 'ZOO', tmp_path)
    for name, text in original.items():
        (tmp_path / name).write_text(text.replace('2.41 M', '2.14 M'))

    assert zoo('handwritten') == 1
    assert capsys.readouterr().out.splitlines()[:2] == ['handwritten.md: out of date', 'model-index.yml: out of date']
    assert zoo('handwritten', '--write') == 0
    assert zoo('handwritten') == 0
    assert {name: (tmp_path / name).read_text() for name in original} == original

    with pytest.raises(SystemExit) as end:
        zoo('swin')
    assert end.value.code == 2
    (tmp_path / 'handwritten.md').write_text('No table.')
    with pytest.raises(SystemExit) as end:
        zoo('handwritten')
    assert end.value.code == 2
    assert 'handwritten.md has no place for a table' in capsys.readouterr().err
