output "instance_ids" {
  description = "The instances that exist; empty where there was no capacity."
  value       = flatten([for each in aws_ec2_fleet.node.fleet_instance_set : each.instance_ids])
}

output "fleet_id" {
  description = "The fleet: deleting it with its instances is how the meter is stopped."
  value       = aws_ec2_fleet.node.id
}

output "launch_template_id" {
  description = "The launch template of the attempt."
  value       = aws_launch_template.node.id
}
