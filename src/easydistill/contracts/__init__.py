"""The contracts of extensions, one module per kind.

Third parties import from here, and only from here (apart from `easydistill.config.base` for field types and
`easydistill.data.records` for rows). A package adds an extension by naming a module in an entry-point group; the module
declares what the Protocol says.

    kind       entry-point group       Protocol                            used as
    loss       easydistill.losses      contracts.loss.LossModule           distillation.distillation_type
    operator   easydistill.synthesis.operators   contracts.operator.OperatorModule   job_type (an operator is a job)
    reward     easydistill.rewards     contracts.reward.RewardModule       a key of rewards
    metric     easydistill.metrics     contracts.metric.MetricModule       a key of evaluation.metrics
    teacher    easydistill.teachers    contracts.teacher.TeacherModule     inference.backend
    job        easydistill.jobs        contracts.job.JobModule             job_type

A module is checked against its Protocol when it is loaded, before anything is asked or trained; the error names what it
lacks.
"""
