"""What we know about models: parameters, prices with source and date, usual seconds, abilities."""

from imagen.catalog.catalog import Catalog
from imagen.catalog.model import Ability, ImageInput, Model, Output, Parameter

__all__ = ["Ability", "Catalog", "ImageInput", "Model", "Output", "Parameter"]
