# Rules are resources of their own: a group without inline rules has none, and what it lets in stays an empty list.
resource "aws_security_group" "node" {
  name        = "${var.name}-node"
  description = "Nodes: nothing comes in."
  vpc_id      = aws_vpc.this.id
  tags        = local.named
}

#trivy:ignore:AVD-AWS-0104 With egress internet a node installs packages from wherever its project says; none and mirror close this.
resource "aws_vpc_security_group_egress_rule" "internet" {
  count             = local.public ? 1 : 0
  security_group_id = aws_security_group.node.id
  description       = "Packages, data and models from anywhere."
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.named
}

resource "aws_vpc_security_group_egress_rule" "s3" {
  count             = local.public ? 0 : 1
  security_group_id = aws_security_group.node.id
  description       = "S3 through the gateway endpoint."
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  prefix_list_id    = aws_vpc_endpoint.s3.prefix_list_id
  tags              = local.named
}

resource "aws_vpc_security_group_egress_rule" "service" {
  count                        = !local.public && length(var.services) > 0 ? 1 : 0
  security_group_id            = aws_security_group.node.id
  description                  = "AWS services through their interface endpoints."
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
  referenced_security_group_id = aws_security_group.service[0].id
  tags                         = local.named
}

resource "aws_vpc_security_group_egress_rule" "mirror" {
  for_each          = toset(var.mirrors)
  security_group_id = aws_security_group.node.id
  description       = "A package mirror."
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = each.key
  tags              = local.named
}

resource "aws_security_group" "service" {
  count       = length(var.services) > 0 ? 1 : 0
  name        = "${var.name}-service"
  description = "Interface endpoints: nodes come in, nothing goes out."
  vpc_id      = aws_vpc.this.id
  tags        = local.named
}

resource "aws_vpc_security_group_ingress_rule" "service" {
  count                        = length(var.services) > 0 ? 1 : 0
  security_group_id            = aws_security_group.service[0].id
  description                  = "Nodes of this network."
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
  referenced_security_group_id = aws_security_group.node.id
  tags                         = local.named
}
