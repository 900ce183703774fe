output "vpc_id" {
  description = "The network."
  value       = aws_vpc.this.id
}

output "subnets" {
  description = "Subnet ids by zone, known when their routes are."
  value       = { for zone, subnet in aws_subnet.this : zone => subnet.id }
  depends_on  = [aws_route_table_association.this, aws_route.internet, aws_vpc_endpoint.s3]
}

output "security_group_id" {
  description = "The group of nodes: nothing comes in."
  value       = aws_security_group.node.id
}

output "public_ip" {
  description = "Whether nodes need a public address to get out."
  value       = local.public
}
