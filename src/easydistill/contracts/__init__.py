"""The contracts of extensions, one module per kind.

A package adds an extension by naming a module in an entry-point group; the module declares what the Protocol says. The
types that it needs are defined or re-exported beside the Protocol.

    kind       entry-point group       Protocol                            used as
    loss       easydistill.losses      contracts.loss.LossModule           distillation.distillation_type
    operator   easydistill.operators   contracts.operator.OperatorModule   job_type (an operator is a job)
    reward     easydistill.rewards     contracts.reward.RewardModule       a key of rewards
    metric     easydistill.metrics     contracts.metric.MetricModule       a key of evaluation.metrics
    task       easydistill.tasks       contracts.task.TaskModule           task in a job `evaluate`
    teacher    easydistill.teachers    contracts.teacher.TeacherModule     inference.backend
    sink       easydistill.sinks       contracts.sink.SinkModule           a key of track
    job        easydistill.jobs        contracts.job.JobModule             job_type

Also public for third parties: `easydistill.config.base` (field types), `easydistill.config.inference` (the section of a
teacher), `easydistill.data.records` (rows), `easydistill.synthesis.replies` (reading an operator's replies), and the
stages of our own jobs, which a job's plan may use.

A module is checked against its Protocol when it is loaded, before anything is asked or trained; the error names what it
lacks.
"""
