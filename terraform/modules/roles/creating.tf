# Creating. A launch needs a permission for everything that it touches: what it makes must carry all seven tags of a
# lease and no other (so nothing can be made to look shared), what it uses must be the environment's own. There is no
# permission for key pairs, so nobody gets a way in by one.
locals {
  creating_policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid    = "LookBeforeAsking"
        Effect = "Allow"
        Action = [
          "ec2:DescribeAvailabilityZones", "ec2:DescribeImages", "ec2:DescribeInstanceTypeOfferings",
          "ec2:DescribeInstanceTypes", "ec2:DescribeSpotPriceHistory", "ec2:DescribeSubnets", "ec2:DescribeVpcs",
          "pricing:GetProducts", "servicequotas:GetAWSDefaultServiceQuota", "servicequotas:GetServiceQuota",
          "servicequotas:ListServiceQuotas",
        ]
        Resource = "*" # none of these knows resources; they tell and change nothing
      },
      {
        Sid      = "FindTheMachineImage"
        Effect   = "Allow"
        Action   = ["ssm:GetParameter", "ssm:GetParameters"]
        Resource = "arn:${local.partition}:ssm:*::parameter/aws/service/*" # AWS's own, public ones
      },
      {
        Sid       = "MakeWithTheTagsOfALease"
        Effect    = "Allow"
        Action    = ["ec2:CreateFleet", "ec2:CreateLaunchTemplate", "ec2:RunInstances"]
        Resource  = [for kind in ["fleet", "instance", "launch-template", "network-interface", "spot-instances-request", "volume"] : "${local.ec2}:${kind}/*"]
        Condition = local.tagged_as_a_lease
      },
      {
        Sid       = "FromALeasesTemplate"
        Effect    = "Allow"
        Action    = ["ec2:CreateFleet", "ec2:RunInstances"]
        Resource  = "${local.ec2}:launch-template/*"
        Condition = { StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment } }
      },
      {
        Sid       = "InTheEnvironmentsNetwork"
        Effect    = "Allow"
        Action    = ["ec2:CreateFleet", "ec2:RunInstances"]
        Resource  = ["${local.ec2}:subnet/*", "${local.ec2}:security-group/*"]
        Condition = { StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment } }
      },
      {
        Sid      = "FromAnImage"
        Effect   = "Allow"
        Action   = ["ec2:CreateFleet", "ec2:RunInstances"]
        Resource = ["arn:${local.partition}:ec2:*::image/*", "arn:${local.partition}:ec2:*::snapshot/*", "${local.ec2}:image/*", "${local.ec2}:snapshot/*"]
      },
      {
        Sid      = "TagOnlyWhatIsBeingMade"
        Effect   = "Allow"
        Action   = "ec2:CreateTags"
        Resource = [for kind in ["fleet", "instance", "launch-template", "network-interface", "spot-instances-request", "volume"] : "${local.ec2}:${kind}/*"]
        Condition = merge(local.tagged_as_a_lease, {
          StringEquals = merge(local.tagged_as_a_lease.StringEquals, {
            "ec2:CreateAction" = ["CreateFleet", "CreateLaunchTemplate", "RunInstances"]
          })
        })
      },
      {
        Sid       = "GiveANodeItsRole"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = local.node_arn
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
      {
        Sid       = "OnceInAnAccount"
        Effect    = "Allow"
        Action    = "iam:CreateServiceLinkedRole"
        Resource  = [for service in ["ec2fleet", "spot"] : "arn:${local.partition}:iam::${local.account}:role/aws-service-role/${service}.amazonaws.com/*"]
        Condition = { StringEquals = { "iam:AWSServiceName" = ["ec2fleet.amazonaws.com", "spot.amazonaws.com"] } }
      },
      ], [for statement in [
        {
          Sid      = "DisksWithTheEnvironmentsKey"
          Effect   = "Allow"
          Action   = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
          Resource = "arn:${local.partition}:kms:*:${local.account}:key/*"
          Condition = {
            StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment }
            StringLike   = { "kms:ViaService" = "ec2.*.amazonaws.com" }
          }
        },
        {
          Sid      = "GrantsForDisksOnly"
          Effect   = "Allow"
          Action   = "kms:CreateGrant"
          Resource = "arn:${local.partition}:kms:*:${local.account}:key/*"
          Condition = {
            StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment }
            Bool         = { "kms:GrantIsForAWSResource" = "true" }
          }
        },
    ] : statement if var.encrypted])
  })

  tagged_as_a_lease = {
    StringEquals                = { "aws:RequestTag/${local.environment}" = var.environment }
    Null                        = { for key in local.lease_keys : "aws:RequestTag/${key}" => "false" }
    "ForAllValues:StringEquals" = { "aws:TagKeys" = local.lease_keys }
  }
}
