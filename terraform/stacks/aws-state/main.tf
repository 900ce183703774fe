# The bucket in which the states of all other stacks lie; its own lies on the host that made it.
module "state" {
  source          = "../../modules/state-bucket"
  name            = var.bucket
  tags            = { "mlinfra-prefect:environment" = var.environment, "mlinfra-prefect:shared" = "true" }
  noncurrent_days = var.noncurrent_days
  force_destroy   = var.force_destroy
  emulated        = var.emulated
}
