output "vpc_id" {
  description = "The network."
  value       = module.network.vpc_id
}

output "subnets" {
  description = "Subnet ids by zone."
  value       = module.network.subnets
}

output "security_group_id" {
  description = "The group of nodes: nothing comes in."
  value       = module.network.security_group_id
}

output "public_ip" {
  description = "Whether nodes get a public address, as their way out."
  value       = module.network.public_ip
}

output "instance_profile" {
  description = "Name of the instance profile of nodes."
  value       = module.roles.instance_profile
}

output "node_role_id" {
  description = "Unique id of the node role: the first part of every mailbox's name."
  value       = module.roles.node_role_id
}

output "creator_role_arn" {
  description = "The role of flows and keepers."
  value       = module.roles.creator_role_arn
}

output "reaper_role_arn" {
  description = "The role of the reaper."
  value       = module.roles.reaper_role_arn
}

output "artifact_bucket" {
  description = "Name of the bucket for mailboxes and checkpoints."
  value       = module.artifacts.name
}

output "kms_key_arn" {
  description = "The key that encrypts disks; empty: the account's own."
  value       = local.key_arn
}
