output "nodes" {
  description = "The nodes that exist: an empty list is no capacity."
  value       = [for id in module.node.instance_ids : { id = id, platform = "aws", region = var.region }]
}

output "fleet_id" {
  description = "The fleet of the attempt."
  value       = module.node.fleet_id
}

output "launch_template_id" {
  description = "The launch template of the attempt."
  value       = module.node.launch_template_id
}
