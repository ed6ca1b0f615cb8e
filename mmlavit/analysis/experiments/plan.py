"""Plans of experiments: which commands are run, with which seeds, and what of them is compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmlavit.errors import UserError
from mmlavit.utils.config_files import load_config

_KEYS = {'title', 'metric', 'scale', 'digits', 'seeds', 'reference', 'columns', 'arms'}
_ARM_KEYS = {'title', 'seeds', 'needs', 'names', 'commands'}
# What is in quotes, or white space outside of them.
_SPACE = re.compile(r"""("[^"]*"|'[^']*')|\s+""")


@dataclass(frozen=True)
class Arm:
    """One row of an experiment's table: commands that are run one after another for every seed.

    Args:
        name (str): Names its folder.
        title (str): Names its row.
        seeds (tuple[int, ...]): Random seeds.
        needs (tuple[str, ...]): Earlier arms whose results the commands read.
        commands (Mapping[str, str]): Commands by a name of each. ``{seed}`` stands for the seed, ``{arm}`` for the
            arm's name, ``{work_dir}`` for the command's own folder, ``{run}`` for that of the arm and the seed, which
            holds those of its commands, and ``{root}`` for that of the experiment, which holds ``ARM/seed_N``.
        names (Mapping[str, Any]): What else stands for ``{NAME}`` in its commands: the plan's names and its own. They
            may have the placeholders above.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    needs: tuple[str, ...]
    commands: Mapping[str, str]
    names: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an experiment runs and compares.

    Args:
        name (str): Name of its file.
        title (str): What is compared, on what.
        metric (str): Name under which a validation or test logs the result.
        scale (float): Factor for the tables, such as 100 for a share.
        digits (int): Decimals in the tables.
        reference (str): The arm that differences are to.
        columns (Mapping[str, str]): Commands whose result is shown, and what the table calls them.
        arms (tuple[Arm, ...]): The rows.
    """

    name: str
    title: str
    metric: str
    scale: float
    digits: int
    reference: str
    columns: Mapping[str, str]
    arms: tuple[Arm, ...]

    @classmethod
    def read(cls, path: str) -> Plan:
        """Read a plan.

        Args:
            path (str): A Python file as those in ``configs/experiments/plans``. Besides what a plan and its arms
                have, it may say ``seeds`` and ``commands`` of all arms that have none of their own, and ``names`` that
                all arms share, also in their titles.

        Returns:
            Plan: The plan.

        Raises:
            UserError: If the file does not exist or is no Python, a key is missing, or unknown in an arm, or a command
                has a placeholder that nothing stands for.
        """
        if not Path(path).is_file():
            raise UserError(f'plan {path} does not exist; expected a file such as those in configs/experiments/plans')
        cfg = load_config(path)
        missing = _KEYS - set(cfg)
        if missing:
            if 'model' in cfg:
                raise UserError(
                    f'{path} is the config of a model, not a plan; expected a file such as those in '
                    'configs/experiments/plans'
                )
            raise UserError(f'{path} has no {", ".join(sorted(missing))}; a plan has {", ".join(sorted(_KEYS))}')
        for key in ('columns', 'arms'):
            if not isinstance(cfg[key], Mapping):
                raise UserError(f'{path}: {key} must be a dict, got {cfg[key]!r}')
        arms = []
        for name, arm in cfg.arms.items():
            if not isinstance(arm, Mapping):
                raise UserError(f'{path}: arm {name} must be a dict, got {arm!r}')
            commands = arm.get('commands', cfg.get('commands'))
            if arm.keys() - _ARM_KEYS or 'title' not in arm or commands is None:
                raise UserError(f'{path}: arm {name} has {", ".join(arm)}; expected {", ".join(sorted(_ARM_KEYS))}')
            if not isinstance(commands, Mapping):
                raise UserError(f'{path}: commands of arm {name} must be a dict, got {commands!r}')
            needs = tuple(arm.get('needs', ()))
            if not set(needs) <= {earlier.name for earlier in arms}:
                raise UserError(f'{path}: arm {name} needs {", ".join(needs)}, which must be arms that stand before it')
            names = {**cfg.get('names', {}), **arm.get('names', {})}
            seeds = arm.get('seeds', cfg.seeds)
            whole = isinstance(seeds, Sequence) and all(isinstance(seed, int) for seed in seeds)
            if not whole or not seeds or len(set(seeds)) < len(seeds):
                raise UserError(f'{path}: seeds of arm {name} must be a list of different numbers, got {seeds!r}')
            arms.append(Arm(name, arm.title, tuple(seeds), needs, dict(commands), names))
        if cfg.reference not in cfg.arms:
            raise UserError(f'{path}: reference is {cfg.reference}; expected one of {", ".join(cfg.arms)}')
        unknown = set(cfg.columns) - {name for arm in arms for name in arm.commands}
        if unknown:
            raise UserError(f'{path}: columns names {", ".join(sorted(unknown))}, which no arm has a command for')
        plain = (cfg[key] for key in ('title', 'metric', 'scale', 'digits', 'reference'))
        plan = cls(Path(path).stem, *plain, dict(cfg.columns), tuple(arms))
        titled = []
        for arm in arms:
            try:
                titled.append(replace(arm, title=arm.title.format(**arm.names)))
                commands = {name: shlex.split(plan.command(arm, name, arm.seeds[0], Path())) for name in arm.commands}
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f'{path}: title or commands of arm {arm.name} cannot be filled in ({type(error).__name__}: '
                    f'{error}); double a brace that is meant as one'
                ) from error
            for name, words in commands.items():
                if not words or '=' in words[0]:
                    raise UserError(f'{path}: command {name} of arm {arm.name} begins with no program')
        if len({arm.title for arm in titled}) < len(titled):
            raise UserError(f'{path}: two arms have the same title')
        return replace(plan, arms=tuple(titled))

    def command(self, arm: Arm, name: str, seed: int, root: Path) -> str:
        """Give a command of an arm as it is run for a seed.

        Args:
            arm (Arm): The arm.
            name (str): Name of the command.
            seed (int): The seed.
            root (Path): Folder of the experiment.

        Returns:
            str: The command, without placeholders.
        """
        run = root / arm.name / f'seed_{seed}'
        places = dict(seed=seed, arm=arm.name)
        places |= {key: shlex.quote(str(place)) for key, place in dict(work_dir=run / name, run=run, root=root).items()}
        names = {key: text.format(**places) if isinstance(text, str) else text for key, text in arm.names.items()}
        command = arm.commands[name].format(**names, **places)
        return _SPACE.sub(lambda found: found[1] or ' ', command).strip()

    def choose(self, names: Sequence[str], seeds: Sequence[int] = ()) -> list[Arm]:
        """Choose arms by their names, with what they need, and seeds; none means all.

        Args:
            names (Sequence[str]): Names of arms.
            seeds (Sequence[int]): Seeds. An arm that has none of them keeps its own, as a teacher that is trained once.

        Returns:
            list[Arm]: The arms, in the plan's order, with these seeds only.

        Raises:
            UserError: If there is no such arm or seed.
        """
        known = {arm.name: arm for arm in self.arms}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f'{self.name} has no arm {", ".join(unknown)}; expected some of {", ".join(known)}')
        wanted = set(names or known)
        for arm in reversed(self.arms):
            if arm.name in wanted:
                wanted |= set(arm.needs)
        possible = sorted({seed for arm in self.arms for seed in arm.seeds})
        strange = sorted(set(seeds) - set(possible))
        if strange:
            raise UserError(
                f'{self.name} has no seed {", ".join(map(str, strange))}; expected some of '
                f'{", ".join(map(str, possible))}'
            )
        return [
            replace(arm, seeds=tuple(seed for seed in arm.seeds if seed in seeds) or arm.seeds)
            for arm in self.arms
            if arm.name in wanted
        ]
