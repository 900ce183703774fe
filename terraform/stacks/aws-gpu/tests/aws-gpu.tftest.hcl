# The contract: what the attempt is called, and what it says exists.
mock_provider "aws" {
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  # What a fleet started cannot be mocked (it is a block): that is tried against the emulator.
  mock_resource "aws_ec2_fleet" {
    defaults = { id = "fleet-0a1b2c3d" }
  }
}

variables {
  mlinfra = {
    ledger_id   = "ledger-1-and-more"
    lease_id    = "lease-1"
    attempt     = 2
    deadline    = "1900000000.5"
    environment = "dev"
    tags = {
      "mlinfra-prefect:ledger"      = "ledger-1"
      "mlinfra-prefect:lease"       = "lease-1"
      "mlinfra-prefect:attempt"     = "2"
      "mlinfra-prefect:flow-run"    = "none"
      "mlinfra-prefect:owner"       = "ada"
      "mlinfra-prefect:environment" = "dev"
      "mlinfra-prefect:deadline"    = "1900000001"
    }
  }
  region             = "eu-central-1"
  candidates         = [{ instance_type = "g5.xlarge", zone = "eu-central-1a", subnet_id = "subnet-0a" }]
  image_id           = "ami-0123456789abcdef0"
  instance_profile   = "mlinfra-prefect-node-dev"
  security_group_ids = ["sg-0123456789abcdef0"]
  dead_man_minutes   = 90
  boot               = "e30="
}

run "no_capacity_is_an_empty_list_and_no_error" {
  command = apply
  assert {
    condition     = length(output.nodes) == 0
    error_message = "A fleet that got nothing has no nodes."
  }
  assert {
    condition     = output.fleet_id == "fleet-0a1b2c3d" && output.launch_template_id == "lt-0123456789abcdef0"
    error_message = "The fleet is how the meter is stopped."
  }
}

run "is_named_after_its_attempt" {
  command = plan
  assert {
    condition     = local.name == "mlinfra-lease-1-2-ledger-1"
    error_message = "A repeated apply has to meet the template of the first one."
  }
}

run "refuses_an_id_that_is_none" {
  command = plan
  variables {
    mlinfra = {
      ledger_id = "Ledger 1", lease_id = "lease-1", attempt = 1, deadline = "", environment = "dev", tags = {}
    }
  }
  expect_failures = [var.mlinfra]
}

run "refuses_a_region_that_is_none" {
  command = plan
  variables {
    region = "Frankfurt"
  }
  expect_failures = [var.region]
}
