"""tools/dev/check_model_index.py on the repository's index, and on an index with one mistake at a time."""

import copy
import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

METAFILE = dict(
    Collections=[
        {'Name': 'Nets', 'README': 'configs/zoo/nets.md', 'Paper': {'Title': 'T', 'URL': 'https://example.org'}}
    ],
    Models=[
        {
            'Name': name,
            'In Collection': 'Nets',
            'Config': f'configs/{name}.py',
            'Metadata': {'Parameters': 1000, 'FLOPs': 2000, 'Training Data': ['COCO']},
            'Results': [{'Task': 'Object Detection', 'Dataset': 'COCO', 'Metrics': {'box AP': 40.0}}],
        }
        for name in ('net_s', 'net_t')
    ],
)


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the script in this process; give its exit code and output."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['check_model_index.py', *map(str, args)])
        try:
            runpy.run_path(str(ROOT / 'tools/dev/check_model_index.py'), run_name='__main__')
        except SystemExit as end:
            return end.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


@pytest.fixture
def tree(tmp_path):
    """Write a small repository around a metafile."""

    def write(metafile, imported=('configs/zoo/nets.yml',)):
        for name in ('net_s.py', 'net_t.py', '_base_/net.py', 'distributed/net_s_fsdp.py', 'zoo/nets.md'):
            path = tmp_path / 'configs' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / 'configs/zoo/nets.yml').write_text(yaml.safe_dump(metafile))
        (tmp_path / 'model-index.yml').write_text(yaml.safe_dump(dict(Import=list(imported))))
        return tmp_path

    return write


def test_repository(check):
    code, said = check()
    assert code == 0, said.out
    assert said.out.startswith('OK: model-index.yml')


def test_right(check, tree):
    code, said = check('--root', tree(METAFILE))
    assert code == 0, said.out


def model(**changes):
    """Change the first model; None removes a field."""

    def change(metafile):
        first = metafile['Models'][0]
        for field, value in changes.items():
            field = field.replace('_', ' ')
            first.pop(field) if value is None else first.update({field: value})

    return change


def metadata(field, value):
    return lambda metafile: metafile['Models'][0]['Metadata'].update({field: value})


def collection(**changes):
    return lambda metafile: metafile['Collections'][0].update(changes)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (model(Nmae='x'), "model 'net_s': unknown field 'Nmae'"),
        (model(Metadata=None), "model 'net_s': has no Metadata"),
        (model(In_Collection='Other'), "model 'net_s': no metafile has its collection 'Other'"),
        (model(Config='configs/none.py'), "model 'net_s': configs/none.py is no config of a model"),
        (model(Config='configs/_base_/net.py'), "model 'net_s': configs/_base_/net.py is no config of a model"),
        (model(Config='configs/net_t.py'), 'model-index.yml: configs/net_t.py belongs to two models'),
        (model(Name='net-s'), "model 'net-s': expected the name of its config, 'net_s'"),
        (model(Name='net_t'), "model-index.yml: two models are called 'net_t'"),
        (model(Weights='https://example.org/net_s.pth'), "model 'net_s': Weights https://example.org/net_s.pth is no"),
        (model(Results=[{'Task': 'T', 'Dataset': 'D', 'Metrics': {'AP': '40.0 %'}}]), "Results: Metrics is {'AP': '4"),
        (model(Results=[{'Task': 'T', 'Metrics': {'AP': 1}}]), 'Results: Dataset is None, expected a name'),
        (metadata('FLOPS', 1), "model 'net_s': Metadata: unknown field 'FLOPS'"),
        (metadata('FLOPs', '2 G'), "Metadata: FLOPs is '2 G', expected a number"),
        (metadata('Training Data', []), 'Metadata: Training Data is [], expected a list of words'),
        (metadata('Training Data', [2017]), 'Metadata: Training Data is [2017], expected a list of words'),
        (collection(README='nets.md'), "collection 'Nets': README nets.md does not exist"),
        (collection(Paper={'Link': 'x'}), "collection 'Nets': Paper: unknown field 'Link'"),
        (collection(Name='Others'), "model-index.yml: no model is in the collection 'Others'"),
        (lambda metafile: metafile['Models'].pop(), 'configs/net_t.py: is in no metafile'),
        (lambda metafile: metafile.update(Model=[]), "configs/zoo/nets.yml: unknown field 'Model'"),
    ],
)
def test_mistakes(change, expected, check, tree):
    metafile = copy.deepcopy(METAFILE)
    change(metafile)
    code, said = check('--root', tree(metafile))
    assert code == 1
    assert expected in said.out
    lines = said.out.splitlines()
    assert lines[-1].startswith(f'{len(lines) - 1} mistake')


@pytest.mark.parametrize(
    ('imported', 'expected'),
    [
        ([], 'model-index.yml: does not import configs/zoo/nets.yml'),
        (['configs/zoo/nets.yml'] * 2, 'model-index.yml: imports configs/zoo/nets.yml twice'),
        (['configs/zoo/nets.yml', 'configs/no.yml'], 'model-index.yml: imports configs/no.yml, which does not exist'),
    ],
)
def test_imports(imported, expected, check, tree):
    code, said = check('--root', tree(METAFILE, imported))
    assert code == 1
    assert expected in said.out.splitlines()


def test_broken_file(check, tree):
    root = tree(METAFILE)
    (root / 'configs/zoo/nets.yml').write_text('Models: [')
    code, said = check('--root', root)
    assert code == 1
    assert said.out.startswith('configs/zoo/nets.yml: is no YAML')


def test_no_index(check, tmp_path):
    code, said = check('--root', tmp_path)
    assert code == 2
    assert said.err == f'error: {tmp_path} has no model-index.yml; --root takes a clone of the repository\n'
