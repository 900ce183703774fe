# What a node is born with. Nothing here needs an account: the provider is a mock.
mock_provider "aws" {
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
}

variables {
  name = "mlinfra-lease-1"
  tags = {
    "mlinfra-prefect:ledger"      = "ledger-1"
    "mlinfra-prefect:lease"       = "lease-1"
    "mlinfra-prefect:attempt"     = "1"
    "mlinfra-prefect:flow-run"    = "none"
    "mlinfra-prefect:owner"       = "ada"
    "mlinfra-prefect:environment" = "dev"
    "mlinfra-prefect:deadline"    = "1900000000"
  }
  candidates = [
    { instance_type = "g5.xlarge", zone = "eu-central-1a", subnet_id = "subnet-0a", max_price = "0.9" },
    { instance_type = "g6.xlarge", zone = "eu-central-1b", subnet_id = "subnet-0b" },
  ]
  image_id           = "ami-0123456789abcdef0"
  instance_profile   = "mlinfra-prefect-node-dev"
  security_group_ids = ["sg-0123456789abcdef0"]
  dead_man_minutes   = 90
  boot               = "eyJzY2hlbWEiOiAieCJ9"
}

run "arms_the_dead_man_before_anything_else" {
  command = plan
  assert {
    condition     = startswith(base64decode(aws_launch_template.node.user_data), "#!/bin/bash\nshutdown -P +90\nMLINFRA_BOOT=eyJzY2hlbWEiOiAieCJ9\n")
    error_message = "The first lines of the user data are not those that the emulator knows."
  }
  assert {
    condition     = endswith(base64decode(aws_launch_template.node.user_data), file("boot.sh"))
    error_message = "boot.sh does not follow as it is."
  }
  assert {
    condition     = aws_launch_template.node.instance_initiated_shutdown_behavior == "terminate"
    error_message = "Powering off has to mean the end of the instance."
  }
}

run "is_closed_and_encrypted" {
  command = plan
  assert {
    condition     = one(aws_launch_template.node.metadata_options).http_tokens == "required" && one(aws_launch_template.node.metadata_options).http_put_response_hop_limit == 1
    error_message = "IMDSv2 has to be required, with one hop."
  }
  assert {
    condition = alltrue([
      one(one(aws_launch_template.node.block_device_mappings).ebs).encrypted == "true",
      one(one(aws_launch_template.node.block_device_mappings).ebs).delete_on_termination == "true",
      one(one(aws_launch_template.node.block_device_mappings).ebs).volume_type == "gp3",
    ])
    error_message = "The disk has to be encrypted, of type gp3, and go with its instance."
  }
  assert {
    condition     = one(aws_launch_template.node.network_interfaces).associate_public_ip_address == "false"
    error_message = "Unless it is asked for there is no public address."
  }
}

run "tags_everything_that_is_billed" {
  command = plan
  assert {
    condition     = toset(aws_launch_template.node.tag_specifications[*].resource_type) == toset(["instance", "volume", "network-interface"])
    error_message = "On demand there are instances, volumes and interfaces, and no spot request."
  }
  assert {
    condition     = alltrue([for each in aws_launch_template.node.tag_specifications : each.tags == var.tags]) && aws_launch_template.node.tags == var.tags && aws_ec2_fleet.node.tags == var.tags
    error_message = "All seven tags have to stand everywhere."
  }
}

run "asks_for_each_candidate_in_order" {
  command = plan
  assert {
    condition     = aws_ec2_fleet.node.type == "instant" && aws_ec2_fleet.node.terminate_instances
    error_message = "The fleet has to be instant, and take its instances along."
  }
  assert {
    condition     = one(aws_ec2_fleet.node.launch_template_config).override[*].instance_type == tolist(["g5.xlarge", "g6.xlarge"]) && one(aws_ec2_fleet.node.launch_template_config).override[*].priority == tolist([0, 1])
    error_message = "The order of the candidates has to be their priority."
  }
  assert {
    condition     = one(aws_ec2_fleet.node.launch_template_config).override[0].max_price == null
    error_message = "A price limit is for spot only."
  }
}

run "spot_also_tags_its_request" {
  command = plan
  variables {
    market = "spot"
  }
  assert {
    condition     = contains(aws_launch_template.node.tag_specifications[*].resource_type, "spot-instances-request")
    error_message = "A spot request is found by its tags, too."
  }
  assert {
    condition     = one(aws_ec2_fleet.node.launch_template_config).override[0].max_price == "0.9" && one(aws_ec2_fleet.node.target_capacity_specification).spot_target_capacity == 1
    error_message = "Spot has to be asked for, at no more than the price limit."
  }
}

run "refuses_a_missing_tag" {
  command = plan
  variables {
    tags = { "mlinfra-prefect:ledger" = "ledger-1" }
  }
  expect_failures = [var.tags]
}

run "refuses_a_boot_that_is_more_than_one_word" {
  command = plan
  variables {
    boot = "e30=\nreboot"
  }
  expect_failures = [var.boot]
}

run "refuses_user_data_that_ec2_does_not_take" {
  command = plan
  variables {
    boot = format("%017000d", 0)
  }
  expect_failures = [aws_launch_template.node]
}

run "refuses_a_pool_named_twice" {
  command = plan
  variables {
    candidates = [
      { instance_type = "g5.xlarge", zone = "eu-central-1a", subnet_id = "subnet-0a" },
      { instance_type = "g5.xlarge", zone = "eu-central-1a", subnet_id = "subnet-0a" },
    ]
  }
  expect_failures = [var.candidates]
}
