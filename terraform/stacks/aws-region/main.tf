# The network of a further region; roles, buckets and the dead-man are those of the home region.
module "network" {
  source = "../../modules/network"
  name   = "mlinfra-prefect-${var.environment}"
  tags   = { "mlinfra-prefect:environment" = var.environment, "mlinfra-prefect:shared" = "true" }
  region = var.region
  cidr   = var.cidr
  zones  = var.zones
  egress = var.egress
}
