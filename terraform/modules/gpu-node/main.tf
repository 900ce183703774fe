locals {
  spot = var.market == "spot"

  # The dead-man is armed before anything else can fail. The emulator knows these lines, so they are not to be changed
  # on one side only.
  user_data = join("\n", [
    "#!/bin/bash",
    "shutdown -P +${var.dead_man_minutes}",
    "MLINFRA_BOOT=${var.boot}",
    file("${path.module}/boot.sh"),
  ])
}

resource "aws_launch_template" "node" {
  name     = var.name
  image_id = var.image_id
  # Only here can powering off mean the end of the instance, and that is what the dead-man and boot.sh rely on.
  instance_initiated_shutdown_behavior = "terminate"
  user_data                            = base64encode(local.user_data)
  tags                                 = var.tags

  iam_instance_profile {
    name = var.instance_profile
  }

  # IMDSv2 only, and only for the machine itself: a container on it does not get the node's credentials by accident.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  network_interfaces {
    device_index                = 0
    associate_public_ip_address = var.public_ip
    security_groups             = var.security_group_ids
    delete_on_termination       = true
  }

  block_device_mappings {
    device_name = var.root_device
    ebs {
      volume_size           = var.disk_gib
      volume_type           = "gp3"
      encrypted             = true
      kms_key_id            = var.kms_key_id == "" ? null : var.kms_key_id
      delete_on_termination = true
    }
  }

  # A fleet's own tags and a provider's default_tags do not reach what an instant fleet starts; these do. EC2 refuses
  # tags for a spot request where there is none.
  dynamic "tag_specifications" {
    for_each = concat(["instance", "volume", "network-interface"], local.spot ? ["spot-instances-request"] : [])
    content {
      resource_type = tag_specifications.value
      tags          = var.tags
    }
  }

  lifecycle {
    precondition {
      condition     = length(local.user_data) <= 16384
      error_message = "The user data has ${length(local.user_data)} bytes; EC2 takes 16384. Shorten what boot is told."
    }
  }
}

# `instant`: one synchronous request that tries every type and zone, answers what it got, and tries nothing afterwards.
# Without capacity it succeeds and is empty. Applied once: a second plan would replace it.
resource "aws_ec2_fleet" "node" {
  type                = "instant"
  terminate_instances = true
  tags                = var.tags

  launch_template_config {
    launch_template_specification {
      launch_template_id = aws_launch_template.node.id
      version            = aws_launch_template.node.latest_version
    }
    dynamic "override" {
      for_each = var.candidates
      content {
        instance_type     = override.value.instance_type
        subnet_id         = override.value.subnet_id
        availability_zone = override.value.zone # the subnet says it, too; with it an error names the zone
        max_price         = local.spot ? override.value.max_price : null
        priority          = override.key
      }
    }
  }

  target_capacity_specification {
    default_target_capacity_type = var.market
    total_target_capacity        = var.nodes
    on_demand_target_capacity    = local.spot ? 0 : var.nodes
    spot_target_capacity         = local.spot ? var.nodes : 0
  }

  # On demand the order of the candidates decides; on spot the chance to be left alone counts as much as the price.
  dynamic "on_demand_options" {
    for_each = local.spot ? [] : ["prioritized"]
    content {
      allocation_strategy = on_demand_options.value
    }
  }
  dynamic "spot_options" {
    for_each = local.spot ? ["price-capacity-optimized"] : []
    content {
      allocation_strategy            = spot_options.value
      instance_interruption_behavior = "terminate"
    }
  }
}
