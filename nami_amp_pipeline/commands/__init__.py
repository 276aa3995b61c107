"""The commands of ``nami-amp``, one concept a module; what takes long to import is imported where it is used."""
