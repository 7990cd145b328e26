"""Train a network that chooses its bit-widths image by image.

python train.py                                          # the default: ResNet-20 on digits
python train.py quant=lsq quant.widths=[3]               # static: one width
python train.py quant=none                               # full precision: the unconverted model
python train.py data=cifar10 data.download=true trainer.epochs=200
python train.py model.name=resnet18 data=imagefolder data.root=PATH data.size=64
python train.py search=sensitivity quant.widths=[2,4,8] model.checkpoint_path=FLOAT   # a plan
python train.py -m quant=dorefa,lsq seed=0,1,2           # a sweep: all combinations
python train.py -m sweep=digits                          # a ready one of conf/sweep
python train.py --cfg job                                # every setting and its value
python train.py --cfg plan                               # what every layer would run at

The run's folder is runs/NAME, where NAME is what was changed; the same command continues it.
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dqnet.cli import job, record, start, to_object
from dqnet.config import TrainConfig
from dqnet.processes import is_main
from dqnet.runtime.lock import held
from dqnet.training.run_state import read_state
from dqnet.training.search import NO_SEARCH
from dqnet.training.show_plan import plan_is_wanted, show_plan
from dqnet.training.smaller import with_channel_counts
from dqnet.training.train import train

PLAN_ONLY = plan_is_wanted(sys.argv)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Trains, in the folder that Hydra chose."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if PLAN_ONLY:
        job(lambda: show_plan(with_channel_counts(to_object(TrainConfig, config))))
        return

    def run() -> None:
        typed = with_channel_counts(to_object(TrainConfig, config))
        with held(folder):
            if is_main():
                read_state(folder, typed)  # refuses other settings before the record is written
                record(config, folder)
            train(typed, folder)
            if typed.search.name != NO_SEARCH and is_main():
                from dqnet.report.bits import write_bits  # drawing takes a second to load

                write_bits(folder)

    job(run, folder)


if __name__ == "__main__":
    start(main, Path(__file__).resolve().parent / "conf", "train")
