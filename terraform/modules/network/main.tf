# A network in which nothing waits to be called: nodes fetch their work, so no rule lets anything in.
locals {
  subnets = { for place, zone in var.zones : zone => cidrsubnet(var.cidr, 4, place) }
  # A public address is the way out that costs nothing while nothing runs; a NAT gateway costs 30 dollars a month.
  public = var.egress == "internet"
  named  = merge(var.tags, { Name = var.name })
}

#trivy:ignore:AVD-AWS-0178 Flow logs are billed by volume, and nothing lets anything in; whoever wants them adds them beside the module.
resource "aws_vpc" "this" {
  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = length(var.services) > 0 # their private names need it, and it costs ten seconds
  tags                 = local.named
}

# AWS's own group lets its members reach each other. Without rules it is harmless to whoever takes it by mistake.
resource "aws_default_security_group" "this" {
  vpc_id = aws_vpc.this.id
  tags   = local.named
}

resource "aws_subnet" "this" {
  for_each                = local.subnets
  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = each.value
  map_public_ip_on_launch = false # the launch template of a node says so where it is wanted
  tags                    = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
  tags   = local.named
}

resource "aws_route_table_association" "this" {
  for_each       = aws_subnet.this
  subnet_id      = each.value.id
  route_table_id = aws_route_table.this.id
}

resource "aws_internet_gateway" "this" {
  count  = local.public ? 1 : 0
  vpc_id = aws_vpc.this.id
  tags   = local.named
}

resource "aws_route" "internet" {
  count                  = local.public ? 1 : 0
  route_table_id         = aws_route_table.this.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}
