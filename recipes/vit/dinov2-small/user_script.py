"""Calibration pictures, read by what the recipes of vision models share."""

from olive.data.registry import Registry

from runner.data.pictures import normalised, pictures

Registry.register_dataset()(pictures)
Registry.register_pre_process()(normalised)
