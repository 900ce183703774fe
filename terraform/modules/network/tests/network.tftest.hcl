# Nobody comes in, and what goes out follows from `egress`.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name   = "mlinfra-prefect-dev"
  region = "eu-central-1"
  zones  = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
}

run "the_default_has_no_ingress_and_nothing_with_a_price" {
  command = plan
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.service) == 0
    error_message = "Nothing comes in."
  }
  assert {
    condition     = length(aws_vpc_endpoint.service) == 0 && aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway"
    error_message = "Only the gateway endpoint is there, which costs nothing."
  }
  assert {
    condition     = length(aws_internet_gateway.this) == 1 && output.public_ip
    error_message = "The way out is a public address while a node lives."
  }
}

run "each_zone_has_a_subnet_of_its_own" {
  command = plan
  assert {
    condition     = { for zone, subnet in aws_subnet.this : zone => subnet.cidr_block } == { "eu-central-1a" = "10.64.0.0/20", "eu-central-1b" = "10.64.16.0/20", "eu-central-1c" = "10.64.32.0/20" }
    error_message = "Ranges follow from the zone's place."
  }
  assert {
    condition     = !anytrue([for subnet in aws_subnet.this : subnet.map_public_ip_on_launch])
    error_message = "A subnet gives nobody a public address unasked."
  }
}

run "without_egress_s3_is_the_only_way_out" {
  command = plan
  variables {
    egress = "none"
  }
  assert {
    condition     = length(aws_internet_gateway.this) == 0 && length(aws_route.internet) == 0 && !output.public_ip
    error_message = "There is no way to the internet."
  }
  assert {
    condition     = length(aws_vpc_security_group_egress_rule.internet) == 0 && length(aws_vpc_security_group_egress_rule.s3) == 1 && length(aws_vpc_security_group_egress_rule.mirror) == 0
    error_message = "Nodes may call S3 and nothing else."
  }
}

run "a_mirror_is_reached_by_its_range" {
  command = plan
  variables {
    egress  = "mirror"
    mirrors = ["10.0.8.0/24"]
  }
  assert {
    condition     = aws_vpc_security_group_egress_rule.mirror["10.0.8.0/24"].to_port == 443
    error_message = "The mirror's range has to be open on 443."
  }
}

run "services_let_nodes_in_and_nobody_else" {
  command = plan
  variables {
    egress   = "none"
    services = ["ssm"]
  }
  assert {
    condition     = aws_vpc_endpoint.service["ssm"].service_name == "com.amazonaws.eu-central-1.ssm" && aws_vpc_endpoint.service["ssm"].private_dns_enabled
    error_message = "The service has to be found under its usual name."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.service[0].cidr_ipv4 == null && length(aws_vpc_security_group_egress_rule.service) == 1
    error_message = "Nodes are let in by their group, not by an address."
  }
}

run "named_buckets_close_the_last_way_out" {
  command = plan
  variables {
    buckets = ["ours"]
  }
  assert {
    condition     = jsondecode(aws_vpc_endpoint.s3.policy).Statement[0].Resource == ["arn:aws:s3:::ours", "arn:aws:s3:::ours/*"]
    error_message = "Only the named buckets may be reached."
  }
}

run "refuses_another_egress" {
  command = plan
  variables {
    egress = "some"
  }
  expect_failures = [var.egress]
}

run "refuses_a_zone_of_another_region" {
  command = plan
  variables {
    zones = ["us-east-1a"]
  }
  expect_failures = [var.zones]
}

run "refuses_mirrors_without_egress_to_them" {
  command = plan
  variables {
    mirrors = ["10.0.8.0/24"]
  }
  expect_failures = [var.mirrors]
}

run "refuses_a_range_that_is_too_small" {
  command = plan
  variables {
    cidr = "10.0.0.0/28"
  }
  expect_failures = [var.cidr]
}
