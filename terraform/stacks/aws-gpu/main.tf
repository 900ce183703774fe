locals {
  name = "mlinfra-${var.mlinfra.lease_id}-${var.mlinfra.attempt}-${substr(var.mlinfra.ledger_id, 0, 8)}"
}

# One attempt: an instant fleet in one region and one market, with a launch template of its own.
module "node" {
  source             = "../../modules/gpu-node"
  name               = local.name
  tags               = var.mlinfra.tags
  market             = var.market
  candidates         = var.candidates
  nodes              = var.nodes
  image_id           = var.image_id
  root_device        = var.root_device
  disk_gib           = var.disk_gib
  kms_key_id         = var.kms_key_id
  instance_profile   = var.instance_profile
  security_group_ids = var.security_group_ids
  public_ip          = var.public_ip
  dead_man_minutes   = var.dead_man_minutes
  boot               = var.boot
}
