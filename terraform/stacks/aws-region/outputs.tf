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

output "kms_key_arn" {
  description = "The key that encrypts disks; empty: the account's own."
  value       = ""
}
