"""A model of what a KFP 2.17.0 backend does with a compiled pipeline, to test what `kfp.local` and a fake server hide.

It walks the two documents of the compiled file as the driver does, keeps the states of ML Metadata, runs the steps'
real code as processes, and hands the exit handler what the backend would. Each rule names its source: a file of
github.com/kubeflow/pipelines at tag 2.17.0 (its Go code under backend/src/v2/ unless a path says otherwise), or of
github.com/argoproj/argo-workflows at v4.0.5, or "seen" for what was met on a real one of these versions.

    metadata.py  executions and artifacts, when the state of a group is counted
    driver.py    inputs, conditions, loops, the cache's key
    pod.py       what the pod of a step is given
    launcher.py  the step's program as a process, its artifacts in a bucket
    argo.py      what is retried, when, how often
    run.py       one run: accidents, Terminate, Retry
    rules.py     when the state of a group is not counted

What else can be seen in the file alone `lfm compile` looks at: pipelines/compiled.py, pipelines/backend_rules.py.

Left out: Argo's controller restarting whole groups (`argo.tries` counts them), real clocks of deadlines, several
namespaces, importers, artifact iterators.
"""
