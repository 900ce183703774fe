# What all leases of one environment share: never swept, and next to free while nothing is leased.
locals {
  name     = "mlinfra-prefect-${var.environment}"
  tags     = { "mlinfra-prefect:environment" = var.environment, "mlinfra-prefect:shared" = "true" }
  hardened = var.profile == "hardened"
  # Without a way to the internet, secrets are reached through endpoints.
  endpoints = local.hardened || (length(var.secret_arns) > 0 && var.egress != "internet")
  regions   = length(var.regions) > 0 ? var.regions : [var.region]
  key_arn   = local.hardened ? aws_kms_key.this[0].arn : ""
}

module "network" {
  source   = "../../modules/network"
  name     = local.name
  tags     = local.tags
  region   = var.region
  cidr     = var.cidr
  zones    = var.zones
  egress   = var.egress
  mirrors  = var.mirrors
  services = var.services != null ? var.services : local.endpoints ? ["secretsmanager", "ssm"] : []
  buckets  = local.hardened ? concat([var.artifact_bucket], var.input_buckets) : []
}

module "artifacts" {
  source      = "../../modules/artifact-bucket"
  name        = var.artifact_bucket
  tags        = local.tags
  kms_key_arn = local.key_arn
  emulated    = var.emulated
}

module "roles" {
  source          = "../../modules/roles"
  environment     = var.environment
  tags            = local.tags
  state_bucket    = var.state_bucket
  artifact_bucket = var.artifact_bucket
  input_buckets   = var.input_buckets
  secret_arns     = var.secret_arns
  trusted_arns    = var.trusted_arns
  encrypted       = local.hardened
}

module "dead_man" {
  count       = var.dead_man == null ? 0 : 1
  source      = "../../modules/dead-man"
  environment = var.environment
  tags        = local.tags
  regions     = local.regions
  policy_arn  = module.roles.ending_policy_arn
  archive     = var.dead_man.archive
  sha256      = var.dead_man.sha256
}

module "dashboard" {
  count           = var.dashboard ? 1 : 0
  source          = "../../modules/dashboard"
  environment     = var.environment
  region          = var.region
  regions         = local.regions
  artifact_bucket = var.artifact_bucket
  function_name   = one(module.dead_man[*].function_name) != null ? one(module.dead_man[*].function_name) : ""
  log_group       = one(module.dead_man[*].log_group) != null ? one(module.dead_man[*].log_group) : ""
}
