"""One function per pipeline step: inputs and outputs are folders, everything else is the configuration.

Each step names its result by a hash of all it depends on (`lfm.storage.store.build_once`) and takes it from the
store when it is there, so a second run repeats nothing that has not changed. Heavy imports wait inside the functions.
"""
