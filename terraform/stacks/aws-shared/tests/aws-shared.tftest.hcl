# What the two profiles are.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  environment     = "dev"
  region          = "eu-central-1"
  zones           = ["eu-central-1a", "eu-central-1b"]
  state_bucket    = "mlinfra-prefect-state-dev-123456789012-eu-central-1"
  artifact_bucket = "mlinfra-prefect-artifacts-dev-123456789012-eu-central-1"
}

run "default_has_no_key_and_a_public_way_out" {
  command = plan
  assert {
    condition     = output.public_ip && output.kms_key_arn == "" && length(aws_kms_key.this) == 0
    error_message = "The default costs nothing at rest."
  }
}

run "default_may_be_closed_without_a_price" {
  command = plan
  variables {
    egress = "none"
  }
  assert {
    condition     = !output.public_ip && length(aws_kms_key.this) == 0
    error_message = "S3's gateway is enough for nodes that install nothing."
  }
}

run "hardened_has_a_key_that_rotates" {
  command = plan
  variables {
    profile = "hardened"
    egress  = "none"
  }
  assert {
    condition     = aws_kms_key.this[0].enable_key_rotation && !output.public_ip
    error_message = "Hardened has a key of its own and private subnets."
  }
}

run "refuses_hardened_with_the_internet" {
  command = plan
  variables {
    profile = "hardened"
  }
  expect_failures = [var.egress]
}

run "refuses_regions_without_the_home_region" {
  command = plan
  variables {
    regions = ["eu-west-1"]
  }
  expect_failures = [var.regions]
}
