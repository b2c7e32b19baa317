"""From a config to specs: one planner per part of the config.

In: a config that fits the schema. Out: the specs of all artifacts that its report needs. Planners run in the order of
the graph, and each calls only those before it: sources, bases, mining, teaching, collections, evaluation, recipes and
baselines. `study.Study` calls them; open `sources.py` first, the shortest example.

A planner whose part has several kinds (a source from a registry, a package or a file) has a table `KINDS`, which maps
the config's key to a function. A new kind is one function, one line in that table, and an entry in the schema.
"""
